"""The command line, `python -m sanitizer`: app.py says what can be written on it, one file a command does the work."""
