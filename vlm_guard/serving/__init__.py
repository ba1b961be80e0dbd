"""Guards inside a server that answers many people at once, each request with its own method.

May import: guard and what guard may.
"""
