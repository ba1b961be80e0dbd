"""The `vlm-guard` command: one file per sub-command in this folder, found by scanning it."""


def main() -> None:
    """Run the command line (filled in by the command modules)."""
