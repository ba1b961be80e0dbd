"""LQCD: leading query contrastive decoding (Towards Analyzing and Mitigating Sycophancy in LVLMs, arXiv 2408.11261)."""

from vlm_guard.methods.lqcd.method import LQCD

__all__ = ["LQCD"]
