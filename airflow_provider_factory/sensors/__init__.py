"""Sensors that wait for a topic or a consumer group."""
