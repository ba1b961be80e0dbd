"""The page's components and their places; what they do is in `wiring`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from vlm_guard.demo import panels
from vlm_guard.demo.answering import LONGEST_PROMPT
from vlm_guard.demo.context import DemoContext
from vlm_guard.demo.limited_slider import limited
from vlm_guard.demo.look_panel import ALL_HEADS, METHOD_LAYERS, head_choices, layer_choices
from vlm_guard.demo.marked_answer import legend_html
from vlm_guard.demo.method_options import method_choices, setting_text
from vlm_guard.demo.sure_panel import SURE_HINT
from vlm_guard.demo.uploads import read_once
from vlm_guard.eval.tasks.pope.leading_queries import LEADING_TEMPLATES

FIRST_PROMPT = "Please describe this image in detail."
ASK_INTRODUCTION = (
    "Yes or no: does the model see what is there, and does it stay with its answer when the question suggests the "
    "wrong one? The questions are POPE's, made from this picture's annotations. LQCD is the method made against "
    "leading questions; choose it under “Guarded by”."
)
SURE_INTRODUCTION = (
    "Is it really there? For every thing that an answer mentions, on any picture: what the picture's own tokens say, "
    "and what the unguarded model answers when it is asked."
)
WORD_SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


@dataclass(kw_only=True, eq=False)
class Page:
    """Handles of everything the wiring needs."""

    context: DemoContext
    parts: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["parts"][name]
        except KeyError:
            raise AttributeError(f"the page has no part {name!r}") from None


def words_panel(value: str, name: str) -> gr.HTML:
    """A panel whose words can be pressed; a press is its `select` event."""
    return gr.HTML(value, js_on_load=WORD_SCRIPT, elem_id=name, elem_classes="vg-panel", apply_default_css=False)


def plain_panel(value: str, name: str) -> gr.HTML:
    """A panel that only shows."""
    return gr.HTML(value, js_on_load=None, elem_id=name, elem_classes="vg-panel", apply_default_css=False)


def lay_out(context: DemoContext) -> Page:
    """Place everything; call inside `gr.Blocks`."""
    page = Page(context=context)
    parts = page.parts
    # States begin empty: Gradio copies a start value for every visitor.
    parts["picture"] = gr.State(None)
    parts["comparison"] = gr.State(None)
    setting = context.setting
    parts["options"] = gr.State(dict(setting.options))
    parts["selection"] = gr.State(None)
    parts["checked"] = gr.State(None)
    parts["sure_selection"] = gr.State(None)
    plain_panel(panels.header_html(context.model_line), "vg-head")
    with gr.Row(elem_id="vg-page"):
        with gr.Column(elem_id="vg-left", scale=4, min_width=300):
            _picture_column(page)
        with (
            gr.Column(elem_id="vg-right", scale=8, min_width=320),
            gr.Tabs(elem_id="vg-tabs", overflow_behavior="wrap") as parts["tabs"],
        ):
            with gr.Tab("Compare", id="compare"):
                _compare_tab(page)
            with gr.Tab("Where it looked", id="look", render_children=True):
                _look_tab(page)
            with gr.Tab("How sure", id="sure", render_children=True):
                _sure_tab(page)
            with gr.Tab("Ask it", id="ask", render_children=True):
                _ask_tab(page)
    return page


def _picture_column(page: Page) -> None:
    parts, browser, first = page.parts, page.context.browser, page.context.first_picture
    parts["picture_panel"] = plain_panel(
        panels.picture_html(first, len(browser.ids), page.context.note_about(first)), "vg-picture"
    )
    with gr.Row(elem_classes="vg-browse"):
        parts["previous"] = gr.Button("‹ Previous", size="sm", min_width=60, elem_id="vg-previous")
        parts["next"] = gr.Button("Next ›", size="sm", min_width=60, elem_id="vg-next")
        parts["random"] = gr.Button("Random", size="sm", min_width=60, elem_id="vg-random")
    with gr.Row(elem_classes="vg-browse"):
        parts["image_id"] = gr.Textbox(
            show_label=False,
            label="Image id",
            placeholder="Image id",
            container=False,
            max_length=80,
            min_width=80,
            elem_id="vg-id",
            html_attributes=gr.InputHTMLAttributes(enterkeyhint="go"),
        )
        parts["upload"] = read_once(
            gr.UploadButton(
                "Your picture", size="sm", type="binary", file_types=["image"], min_width=80, elem_id="vg-upload"
            )
        )
    parts["picture_error"] = plain_panel("", "vg-picture-error")
    parts["prompt"] = gr.Textbox(
        FIRST_PROMPT,
        label="Prompt",
        lines=1,
        max_lines=4,
        max_length=LONGEST_PROMPT,
        elem_id="vg-prompt",
        html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
    )
    parts["methods"] = gr.Dropdown(
        choices=method_choices(),
        value=page.context.setting.methods,
        multiselect=True,
        label="Guarded by",
        info="One method, or several in this order.",
        elem_id="vg-methods",
    )
    parts["option_holder"] = gr.Accordion("Options of the method", open=False, elem_id="vg-options")
    with gr.Accordion("Generation", open=False, elem_id="vg-generation"):
        parts["temperature"] = limited(
            gr.Slider(
                0, 2, value=0, step=0.1, label="Temperature", info="0 is greedy search.", elem_id="vg-temperature"
            )
        )
        parts["seed"] = gr.Number(0, label="Seed, the same for both answers", precision=0, elem_id="vg-seed")
        parts["max_tokens"] = limited(
            gr.Slider(8, 512, value=96, step=8, label="Longest answer, tokens", elem_id="vg-tokens")
        )
    with gr.Row(elem_classes="vg-run"):
        parts["run"] = gr.Button("Compare", variant="primary", scale=3, min_width=100, elem_id="vg-run")
        parts["stop"] = gr.Button("Stop", interactive=False, scale=1, min_width=60, elem_id="vg-stop")
    plain_panel('<p class="vg-fine">The answers come below, under the tabs.</p>', "vg-where")
    parts["search"] = gr.Button("Find a picture where the guard helps", size="sm", elem_id="vg-search")


def _compare_tab(page: Page) -> None:
    parts = page.parts
    if page.context.opening is None:
        setting = page.context.setting
        title = setting_text(setting.methods, setting.options)
        cards = panels.empty_card("plain", ""), panels.empty_card("guarded", title)
        below = legend_html(page.context.first_picture.objects is not None)
    else:
        comparison, note = page.context.opening
        cards = panels.side_html("plain", comparison), panels.side_html("guarded", comparison)
        below = panels.below_html(comparison, note)
    with gr.Row(elem_classes="vg-answers"):
        parts["plain_card"] = words_panel(cards[0], "vg-plain")
        parts["guarded_card"] = words_panel(cards[1], "vg-guarded")
    parts["below"] = plain_panel(below, "vg-below")
    with gr.Accordion("Copy this as Python or as a command", open=False, elem_id="vg-copy"):
        parts["python"] = gr.Code(language="python", label="Python", interactive=False, elem_id="vg-python")
        parts["command"] = gr.Code(
            language="shell", label="Command", interactive=False, wrap_lines=True, elem_id="vg-command"
        )


def _look_tab(page: Page) -> None:
    parts, architecture = page.parts, page.context.architecture
    layers = [entry.index for entry in architecture.layers]
    opening = page.context.opening
    parts["look_words"] = words_panel(
        panels.LOOK_HINT if opening is None else panels.look_words_html(opening[0]), "vg-look-words"
    )
    with gr.Row(elem_classes="vg-look-settings"):
        parts["layer"] = gr.Dropdown(
            layer_choices(layers), value=METHOD_LAYERS, label="Layers, mean of", elem_id="vg-layer"
        )
        parts["head"] = gr.Dropdown(
            head_choices(architecture.heads), value=ALL_HEADS, label="Heads, mean of", elem_id="vg-head-choice"
        )
        parts["absolute"] = gr.Checkbox(
            False, label="Absolute scale", info="One scale for all words.", elem_id="vg-absolute"
        )
    parts["look"] = plain_panel("", "vg-look")


def _sure_tab(page: Page) -> None:
    parts = page.parts
    plain_panel(f'<p class="vg-intro">{SURE_INTRODUCTION}</p>', "vg-sure-intro")
    with gr.Row(elem_classes="vg-run"):
        parts["check"] = gr.Button("Check both answers", variant="primary", scale=2, min_width=140, elem_id="vg-check")
        parts["repair"] = gr.Checkbox(
            False,
            label="Repair",
            info="Take out what is very doubtful.",
            elem_id="vg-repair",
        )
    parts["sure_words"] = words_panel(SURE_HINT, "vg-sure-words")
    parts["sure"] = plain_panel("", "vg-sure")


def _ask_tab(page: Page) -> None:
    parts = page.parts
    plain_panel(f'<p class="vg-intro">{ASK_INTRODUCTION}</p>', "vg-ask-intro")
    with gr.Row(elem_classes="vg-ask-settings"):
        parts["leading"] = gr.Checkbox(
            False,
            label="Also ask leading questions",
            info="Each adds a sentence for the wrong answer.",
            elem_id="vg-leading",
        )
        parts["template"] = gr.Dropdown(
            [(f"{name}: “{texts['yes']}”", name) for name, texts in LEADING_TEMPLATES.items()],
            value=next(iter(LEADING_TEMPLATES)),
            label="Leading sentence",
            elem_id="vg-template",
        )
    with gr.Row(elem_classes="vg-run"):
        parts["ask"] = gr.Button("Ask all questions", variant="primary", scale=3, min_width=120, elem_id="vg-ask")
        parts["ask_stop"] = gr.Button("Stop", interactive=False, scale=1, min_width=60, elem_id="vg-ask-stop")
    parts["own"] = gr.Textbox(
        show_label=False,
        label="Your question",
        placeholder="Or your own, then Enter: Is there a unicorn in the image?",
        container=False,
        max_length=300,
        elem_id="vg-own",
        html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
    )
    parts["ladder"] = plain_panel(panels.ASK_HINT, "vg-ladder")
