"""Figures -> Markdown, JSON and one HTML page with its pictures inside."""
