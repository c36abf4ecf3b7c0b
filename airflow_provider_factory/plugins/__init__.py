"""Airflow plugins that come with the provider."""
