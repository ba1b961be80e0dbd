"""Choosing a method and its strength for a model without labels: the plain model judges what the others say."""
