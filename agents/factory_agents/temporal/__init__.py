"""Runs pipelines as Temporal workflows, over the same windows and the same ledger as any other orchestrator (extra ``temporal``)."""
