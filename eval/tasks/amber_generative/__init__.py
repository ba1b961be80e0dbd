"""AMBER's generative part: the nouns of a description against what the picture shows."""
