"""Timing whole `generate` calls, on random models of realistic shapes, and checking what is promised on this machine.

May import: the guard and below, but no single method.
"""
