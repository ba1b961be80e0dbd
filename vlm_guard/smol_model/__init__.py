"""The small model with a real language model inside: SmolLM2-135M-Instruct reading scenes, put together on first use.

The language model comes from an installed package, a folder or the hub; the vision tower, the projector and the
low-rank changes of the language model were trained here and lie in `trained/`.

May import: no other room, so that every room may load the model.
"""
