"""VHR: vision-aware head reinforcement (Cracking the Code of Hallucination in LVLMs, ACL 2025, arXiv 2412.13949)."""

from vlm_guard.methods.vhr.method import VHR

__all__ = ["VHR"]
