"""What runs while a guarded model generates: the attention function, hooks, caches, compiled decode steps, the trace.

May import: kernels, families, method.
"""
