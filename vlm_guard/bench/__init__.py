"""Timing whole `generate` calls, on random models of realistic shapes.

May import: the guard and below, but no single method.
"""
