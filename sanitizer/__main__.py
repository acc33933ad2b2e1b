"""`python -m sanitizer`: see sanitizer/cli/app.py."""

import sys

try:
    from .cli.app import main
except ModuleNotFoundError as error:
    # What ComfyUI installs for the nodes does not hold them.
    if error.name not in ("typer", "rich"):
        raise
    sys.exit(f"error: the command line needs {error.name}. Run: pip install typer rich")

if __name__ == "__main__":
    sys.exit(main())
