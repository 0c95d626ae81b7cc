"""`python -m colaworld` equals `colaworld`."""

from __future__ import annotations

import sys

from colaworld.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
