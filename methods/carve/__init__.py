"""CARVE: contrastive attention refinement for visual enhancement (arXiv 2509.06461, ECCV 2026)."""

from vlm_guard.methods.carve.method import CARVE

__all__ = ["CARVE"]
