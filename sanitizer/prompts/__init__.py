"""Concept files -> training prompts."""
