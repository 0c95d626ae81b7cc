"""`python tests/ptx` prints the table of what was run: see coverage.py."""

import sys
from pathlib import Path

# This folder is a package of its own name; its files are not modules of the standard library's.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from ptx.coverage import main  # noqa: E402

sys.exit(main())
