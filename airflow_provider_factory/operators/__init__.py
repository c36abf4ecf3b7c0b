"""Operators that plan windows, run agents and judge what came out."""
