"""Evaluation: data sets, CHAIR and POPE, the runner, statistics and reports."""
