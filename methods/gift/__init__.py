"""GIFT: gaze shift-guided cross-modal fusion enhancement (arXiv 2510.22067, ICML 2026)."""

from vlm_guard.methods.gift.method import GIFT

__all__ = ["GIFT"]
