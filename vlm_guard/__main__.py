"""`python -m vlm_guard` is the command `vlm-guard`."""

from vlm_guard.cli import main

if __name__ == "__main__":
    main()
