"""ACT: attention calibration (Unveiling and Harnessing Hidden Attention Sinks, ICML 2024, arXiv 2406.15765)."""

from vlm_guard.methods.act.method import ACT

__all__ = ["ACT"]
