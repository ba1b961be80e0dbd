"""Who answers the prompts of a run: the model in this process, or a server. One interface (`base`), two kinds.

May import: what `vlm_guard.eval.run` may.
"""
