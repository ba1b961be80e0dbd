"""Training of the small model with a real language model: `python -m vlm_guard.eval.training.smol OUT`."""
