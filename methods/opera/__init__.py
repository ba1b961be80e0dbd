"""OPERA, with the beam search that only it makes."""

from vlm_guard.methods.opera.method import OPERA

__all__ = ["OPERA"]
