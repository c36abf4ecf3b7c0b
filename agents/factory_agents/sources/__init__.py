"""Where ingest reads from, and what enrich looks up; one module a system."""
