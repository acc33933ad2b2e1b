"""`python -m sanitizer`: see sanitizer/cli/app.py."""

import sys

from .cli.app import main

if __name__ == "__main__":
    sys.exit(main())
