"""The command line, `python -m sanitizer`. One file per command; nothing heavy is imported before a command runs."""
