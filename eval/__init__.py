"""Evaluation: data sets, CHAIR and POPE, the runner, statistics and reports.

May import: the guard and below, calibration.
"""
