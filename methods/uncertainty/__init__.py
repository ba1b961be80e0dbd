"""Masking of uncertain visual tokens in the vision tower (arXiv 2510.09008, NeurIPS 2025)."""

from vlm_guard.methods.uncertainty.method import UncertaintyMasking

__all__ = ["UncertaintyMasking"]
