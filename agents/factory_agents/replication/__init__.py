"""PostgreSQL's log as a source: a table's changes, read from a replication slot, in order and once."""
