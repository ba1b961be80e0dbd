"""Grounding as a task: how well the scores of mentions tell what is in the picture from what is not."""
