"""`python tests/cuda_check [--write] [--only OP]`: see resources.py."""

import sys
from pathlib import Path

# This folder is a package of its own name; its files are not modules of the standard library's.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cuda_check.resources import main  # noqa: E402

if __name__ == "__main__":  # processes that compile import this file again
    sys.exit(main())
