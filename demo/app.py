"""The page as a Gradio application, and how it is served."""

import os
from pathlib import Path
from typing import Any

# Gradio reads this when it is imported; the application says so again.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from vlm_guard.demo.answering import AnsweringModel
from vlm_guard.demo.context import DemoContext
from vlm_guard.demo.layout import FIRST_PROMPT, lay_out
from vlm_guard.demo.opening import opening_setting
from vlm_guard.demo.pictures import open_pictures
from vlm_guard.demo.uploads import MAX_UPLOAD_BYTES
from vlm_guard.demo.visitors import Visitors
from vlm_guard.demo.wiring import wire_copying, wire_options, wire_pictures
from vlm_guard.demo.wiring_answers import wire_comparison, wire_look
from vlm_guard.demo.wiring_questions import wire_questions
from vlm_guard.eval.data.datasets import EvaluationData

MOST_WAITING = 16
MOST_SESSIONS = 200
# Gradio confines the style sheet to what it wraps; these rules are for the wrapping itself.
_HEAD = """<style>
html { scrollbar-gutter: stable; }
@media (max-width: 900px) { .gradio-container, .gradio-container .main { padding-inline: 8px !important; } }
</style>"""
_STYLE = Path(__file__).parent / "style.css"


def build_app(
    model: Any, processor: Any, data: str | EvaluationData | None = None, *, opening: bool = False
) -> gr.Blocks:
    """The page for a model. Nothing is served yet.

    Args:
        model: a vision-language model that `wrap` accepts, in evaluation mode.
        processor: its processor.
        data: the pictures to browse, see `open_pictures`.
        opening: answer a few pictures first, so that the page opens with an example instead of empty.

    Raises:
        ValueError: the model cannot be guarded, or the data are of no known kind.
        FileNotFoundError: the data are not there.
    """
    context = DemoContext(model=AnsweringModel(model=model, processor=processor), browser=open_pictures(data))
    if opening:
        setting = opening_setting(context.model_name)
        context.find_opening(FIRST_PROMPT, setting.methods, setting.options)
    visitors = Visitors()
    with gr.Blocks(title="vlm_guard", analytics_enabled=False, fill_width=True) as app:
        page = lay_out(context)
        wire_pictures(page, visitors)
        wire_options(page, app, wire_copying(page, app))
        wire_comparison(page, visitors)
        wire_look(page)
        wire_questions(page, visitors)

        if context.opening is not None:
            example, _ = context.opening
            app.load(lambda: (example.picture, example), None, [page.picture, page.comparison], queue=False)

        def leave(request: gr.Request) -> None:
            visitors.forget(request.session_hash)

        app.unload(leave)
    app.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    return app


def _theme() -> gr.themes.Base:
    """Quiet colours, and the machine's own fonts: nothing is fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        radius_size="md",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        block_border_width="0px",
        block_info_text_color="#5b6470",
        block_info_text_color_dark="#a3a9b2",
        input_placeholder_color="#6a707a",
        input_placeholder_color_dark="#8d939c",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        input_background_fill="white",
        input_background_fill_dark="#1d1f22",
        input_border_color_dark="#3a3d42",
        button_secondary_background_fill_dark="#2b2e33",
        button_secondary_background_fill_hover_dark="#3a3d42",
        input_border_width="1px",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
    )


def launch_options(port: int | None = None) -> dict[str, Any]:
    """Arguments of `launch`: this machine only, nothing shared, nothing sent, uploads limited."""
    return {
        "server_name": "127.0.0.1",
        "server_port": port,
        "share": False,
        "show_error": False,
        "max_file_size": MAX_UPLOAD_BYTES,
        "allowed_paths": [],
        "state_session_capacity": MOST_SESSIONS,
        "footer_links": [],
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "css_paths": [_STYLE],
        "head": _HEAD,
        "theme": _theme(),
    }
