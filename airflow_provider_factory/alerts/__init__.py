"""Alerts worth being woken for: what is said, to whom, and a receiver for those of Alertmanager."""
