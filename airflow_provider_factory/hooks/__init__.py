"""Hooks over the official Kafka and Postgres connections."""
