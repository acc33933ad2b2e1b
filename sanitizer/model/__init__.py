"""The sanitizer itself: its sizes and constants, its networks, its file."""
