"""Starts an agent for an orchestrator and judges what it answers: ``process`` here, pods in the Airflow provider."""
