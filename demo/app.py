"""The page as a Gradio application, and how it is served."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Gradio reads this when it is imported; the application says so again.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from vlm_guard.demo.answering import AnsweringModel
from vlm_guard.demo.context import DemoContext
from vlm_guard.demo.layout import FIRST_PROMPT, lay_out
from vlm_guard.demo.pictures import open_pictures
from vlm_guard.demo.uploads import MAX_UPLOAD_BYTES
from vlm_guard.demo.visitors import Visitors
from vlm_guard.demo.wiring import wire_copying, wire_options, wire_pictures
from vlm_guard.demo.wiring_answers import wire_comparison, wire_look
from vlm_guard.demo.wiring_questions import wire_questions
from vlm_guard.demo.wiring_sure import wire_sure
from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.untrusted.printed_text import shown

MOST_WAITING = 16
MOST_SESSIONS = 200
UPLOAD_CHECK_SECONDS = 60
UPLOAD_LIFE_SECONDS = 300
OWN_HOSTS = ("127.0.0.1", "localhost")
_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")
# Gradio confines the style sheet to what it wraps; these rules are for the wrapping itself.
_HEAD = """<style>
html { scrollbar-gutter: stable; background: #f7f6f3; }
html:has(body.dark) { background: #151619; }
@media (max-width: 900px) { .gradio-container, .gradio-container .main { padding-inline: 8px !important; } }
</style>"""
_HERE = Path(__file__).parent
_STYLE = _HERE / "style.css"
_SCRIPT = f'<script type="module">{(_HERE / "head.js").read_text(encoding="utf-8")}</script>'


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
        setting = context.setting
        context.find_opening(FIRST_PROMPT, setting.methods, setting.options)
    visitors = Visitors()
    # Files of uploads that no page ever asked about are deleted too, and all of them when the server stops.
    delete_cache = (UPLOAD_CHECK_SECONDS, UPLOAD_LIFE_SECONDS)
    with gr.Blocks(title="vlm_guard", analytics_enabled=False, fill_width=True, delete_cache=delete_cache) as app:
        page = lay_out(context)
        wire_pictures(page, visitors)
        wire_options(page, app, wire_copying(page, app))
        wire_comparison(page, visitors)
        wire_look(page)
        wire_sure(page)
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


def check_hosts(names: Sequence[str]) -> tuple[str, ...]:
    """Further names that a browser may call the page by.

    Args:
        names: host names such as "demo.example.org", or "*.example.org" for all names under one; without a port.

    Raises:
        ValueError: one is no host name.
    """
    for name in names:
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(
                f"the host {shown(name)} is no host name; give one such as demo.example.org or *.example.org, without "
                "'http://' and without a port"
            )
    return tuple(name.lower() for name in names)


def launch_options(port: int | None = None, hosts: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of `launch`: this machine only, nothing shared, nothing sent, uploads limited.

    A page of another site can make a browser ask this server under that site's name (DNS rebinding); requests under
    other names than `OWN_HOSTS` and `hosts` are refused.

    Args:
        port: the port; the first free one by default.
        hosts: further names, for a proxy in front of the page.

    Raises:
        ValueError: a name is no host name.
    """
    allowed = [*OWN_HOSTS, *check_hosts(hosts)]
    return {
        "server_name": "127.0.0.1",
        "server_port": port,
        "share": False,
        "show_error": False,
        "max_file_size": MAX_UPLOAD_BYTES,
        "app_kwargs": {"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)]},
        "allowed_paths": [],
        "state_session_capacity": MOST_SESSIONS,
        "footer_links": [],
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "css_paths": [_STYLE],
        "head": _HEAD + _SCRIPT,
        "theme": _theme(),
    }
