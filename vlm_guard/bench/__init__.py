"""Timing whole `generate` calls, on random models of realistic shapes.

May import: everything up to the guard, and methods.
"""
