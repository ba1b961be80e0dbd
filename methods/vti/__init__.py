"""VTI: visual and textual intervention (ICLR 2025, arXiv 2410.15778)."""

from vlm_guard.methods.vti.method import VTI

__all__ = ["VTI"]
