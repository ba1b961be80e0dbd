"""`python -m vlm_guard` is the command `vlm-guard`."""

import sys

from vlm_guard.cli import main

if __name__ == "__main__":
    sys.exit(main())
