"""POPE: yes/no questions about objects, and what an answer says."""
