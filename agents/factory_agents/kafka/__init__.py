"""Everything that speaks to Kafka: configuration, cuts and ledger, bounded reading, transactional writing, lag."""
