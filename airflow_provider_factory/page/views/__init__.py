"""From what was read to what a page shows: pure functions, testable without a server."""
