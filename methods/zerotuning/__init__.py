"""ZeroTuning: one factor on the attention to the first token (arXiv 2505.11739, ICLR 2026)."""

from vlm_guard.methods.zerotuning.method import ZeroTuning

__all__ = ["ZeroTuning"]
