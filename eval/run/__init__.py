"""A run: settings, the model, prompts, generation, records on disk, resume, processes, the summary.

May import: the guard and below, eval.data, eval.tasks.
"""
