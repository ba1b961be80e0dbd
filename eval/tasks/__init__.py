"""What is measured: one file or folder a benchmark, with its questions, its scorer and its columns.

May import: eval.data.
"""
