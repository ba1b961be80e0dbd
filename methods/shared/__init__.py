"""Machinery that two or more methods use; what only one uses lives in that method's folder."""
