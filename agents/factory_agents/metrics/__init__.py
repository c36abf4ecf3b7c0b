"""``factory metrics serve``: counters that come out of the ledger, and lag, for Prometheus."""
