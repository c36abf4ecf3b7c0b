"""Runs agents over windows and live, exactly once."""
