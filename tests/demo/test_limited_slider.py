"""A number that a busy page sends before it has moved it into the slider's range is moved by the server."""

import pytest

pytest.importorskip("gradio")

import gradio as gr

from vlm_guard.demo.limited_slider import limited


@pytest.mark.parametrize(("sent", "taken"), [(9999, 512), (-3, 8), (96, 96), (8, 8), (512, 512)])
def test_numbers_beyond_the_limits_become_the_nearest_limit(sent, taken):
    assert limited(gr.Slider(8, 512, value=96, step=8)).preprocess(sent) == taken
