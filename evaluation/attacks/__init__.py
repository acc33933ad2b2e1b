"""Attacks that need only the text encoder: `python -m evaluation attack`."""
