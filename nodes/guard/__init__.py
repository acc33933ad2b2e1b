"""Guard: every prompt that reaches the server is sanitized, whatever its workflow."""
