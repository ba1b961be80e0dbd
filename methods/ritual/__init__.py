"""RITUAL, with the random changes of pictures that only it makes."""

from vlm_guard.methods.ritual.method import RITUAL

__all__ = ["RITUAL"]
