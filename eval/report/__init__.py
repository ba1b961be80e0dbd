"""Finished runs for people: tables, plots, comparisons with intervals, the page.

May import: eval.run, eval.tasks, eval.data.
"""
