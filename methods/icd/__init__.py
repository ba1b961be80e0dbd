"""ICD: instruction contrastive decoding (Findings of ACL 2024, arXiv 2403.18715)."""

from vlm_guard.methods.icd.method import ICD

__all__ = ["ICD"]
