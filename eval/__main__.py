"""`python -m vlm_guard.eval ...` is `vlm-guard eval ...`, for `accelerate launch -m vlm_guard.eval`."""

import sys

from vlm_guard.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
