"""A slider whose typed numbers are moved into its range on the server, as the page says that they are."""

import gradio as gr


def limited(slider: gr.Slider) -> gr.Slider:
    """Let a slider take the nearest limit for what lies beyond it.

    The browser moves such a number by itself, but a busy page may send it before. Gradio's slider would answer that
    with an error. (A class of its own would be no better: Gradio writes a file beside the source of every such class.)

    Args:
        slider: just made.
    """
    taken = slider.preprocess

    def preprocess(payload: float) -> float:
        return taken(min(max(payload, slider.minimum), slider.maximum))

    vars(slider)["preprocess"] = preprocess
    return slider
