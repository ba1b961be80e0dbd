"""Training of the built-in model from nothing: ``python -m vlm_guard.eval.training OUT``."""
