"""Families with an input layout of their own."""
