"""The page in the browser: both answers side by side, what is hallucinated, and where the model looked.

May import: eval and below, but no single method.
"""
