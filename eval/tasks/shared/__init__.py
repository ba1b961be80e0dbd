"""What every task is made of: metrics as functions of counts, settings with flags, the registry, the listing, drawing.

May import: eval.data.
"""
