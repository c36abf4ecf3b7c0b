"""The Factory page in Airflow's web UI: what the ledger says of each pipeline's windows."""
