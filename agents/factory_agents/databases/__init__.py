"""Databases that sinks, sources and lookups connect to."""
