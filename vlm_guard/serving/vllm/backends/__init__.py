"""vLLM's attention backends with guards inside: one for CPUs, one for GPUs.

Each does what vLLM's own does, and has the guarded rows computed anew (`paged_attention`). They differ in how keys and
values lie in blocks, and in what attends over them there. A backend for other devices belongs here.
"""
