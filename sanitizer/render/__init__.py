"""Scores made visible: colours, a line for the terminal, pictures."""
