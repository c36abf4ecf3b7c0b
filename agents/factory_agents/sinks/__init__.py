"""Where publish writes to: one module a system."""
