"""A slider whose typed numbers are moved into its range on the server, as the page says that they are."""

import gradio as gr

class LimitedSlider(gr.Slider):
    """A slider that takes the nearest limit for what lies beyond it.

    The browser moves such a number by itself, but a busy page may send it before. Gradio's own slider would answer that
    with an error.
    """

    is_template = True  # drawn as Gradio's own

    def preprocess(self, payload: float) -> float:
        """The number, within the limits."""
        return super().preprocess(min(max(payload, self.minimum), self.maximum))
    from collections.abc import Callable, Sequence
    from typing import TYPE_CHECKING, Any, Literal

    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component
