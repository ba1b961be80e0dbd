"""Two sets of logits become one: branches with their inputs and caches, decoding loops, and early layers.

May import: kernels, families, method, runtime.
"""
