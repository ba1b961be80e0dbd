"""What a model is shaped like: its family, layers, heads, visual tokens, picture grids, and published facts about it.

May import: kernels.
"""
