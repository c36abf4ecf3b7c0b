"""The Open Data Contract Standard's JSON Schemas (see NOTICE)."""
