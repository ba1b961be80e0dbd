"""Measuring what methods need to know about a model, and saying what a model is like.

May import: the guard and below, but no single method.
"""
