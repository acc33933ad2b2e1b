"""What a host sets for everybody: the file sanitizer_guard.toml, and the log of what was done. Without ComfyUI."""
