"""VAR: visual attention redistribution (See What You Are Told, ICLR 2025, arXiv 2503.03321)."""

from vlm_guard.methods.var.method import VAR

__all__ = ["VAR"]
