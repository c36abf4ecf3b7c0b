"""Agents over models: prompts, answers that are logged beside the outputs, limits, money and evaluation."""
