"""CHAIR: which objects a caption names that are not in the picture."""
