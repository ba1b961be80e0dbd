"""Measuring what methods need to know about a model, and saying what a model is like.

May import: everything up to the guard, and methods.
"""
