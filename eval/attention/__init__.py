"""Where a model looks: attention recorded over pictures, as facts and plots.

May import: the guard and below, eval.run, eval.data.
"""
