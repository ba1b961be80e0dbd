"""Timing and checking the attention backends against the reference.

May import: kernels, and the leaves `vlm_guard.environment` and `vlm_guard.whole_files`.
"""
