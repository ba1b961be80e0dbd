"""What happens when something is pressed: thin functions between the page's components and the plain callbacks."""

import functools
import logging
import traceback
from collections.abc import Callable
from typing import Any

import gradio as gr

from vlm_guard.demo import panels
from vlm_guard.demo.answering import GenerationSettings
from vlm_guard.demo.comparing import USER_ERRORS
from vlm_guard.demo.copying import as_command, as_python
from vlm_guard.demo.layout import Page
from vlm_guard.demo.limited_slider import limited
from vlm_guard.demo.marked_answer import legend_html, message_html
from vlm_guard.demo.method_options import OptionControl, chosen_methods, controls_of, setting_text
from vlm_guard.demo.pictures import Picture
from vlm_guard.demo.uploads import decode_upload
from vlm_guard.demo.visitors import Visitors

_log = logging.getLogger(__name__)
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden"}
QUICK = {"queue": False, "show_progress": "hidden"}
QUEUE_FULL = "too many visitors are waiting for the model; try again in a moment"
INTERNAL = "something failed inside the demo; the terminal it runs in shows what"


def told(error: BaseException) -> str:
    """What a visitor reads about an error: a user error's own words, or that it is not theirs."""
    if isinstance(error, USER_ERRORS):
        return str(error)
    _log.error("%s", "".join(traceback.format_exception(error)))
    return INTERNAL


def settings_of(seed: float | None, tokens: float, temperature: float) -> GenerationSettings:
    """The generation settings that the page's numbers stand for; ValueError for one out of range."""
    return GenerationSettings(seed=int(seed or 0), max_new_tokens=int(tokens), temperature=float(temperature))


# -- pictures ---------------------------------------------------------------------------------------------------


def wire_pictures(page: Page, visitors: Visitors) -> None:
    """Browse, choose by id, send one. What is on the page about the last picture goes."""
    browser = page.context.browser
    answers = [page.comparison, page.selection, page.plain_card, page.guarded_card, page.below]
    outputs = [page.picture, page.picture_panel, page.picture_error, *answers, page.look_words, page.look, page.ladder]

    def shown(
        get: Callable[[Picture], Picture], picture: Picture | None, names: list[str], values: dict, request: gr.Request
    ) -> tuple:
        try:
            chosen = get(picture or page.context.first_picture)
        except Exception as error:
            return gr.skip(), gr.skip(), message_html("error", told(error)), *(gr.skip() for _ in outputs[3:])
        visitors.begin(request.session_hash)  # whatever still runs is about the last picture
        empty = panels.empty_card("plain", ""), panels.empty_card("guarded", setting_text(names, values))
        below = legend_html(chosen.objects is not None)
        emptied = (None, None, *empty, below, panels.LOOK_HINT, "", panels.ASK_HINT)
        panel = panels.picture_html(chosen, len(browser.ids), page.context.note_about(chosen))
        return chosen, panel, "", *emptied

    def previous_picture(picture: Picture | None, names: list[str], values: dict, request: gr.Request) -> tuple:
        return shown(lambda now: browser.beside(now, -1), picture, names, values, request)

    def next_picture(picture: Picture | None, names: list[str], values: dict, request: gr.Request) -> tuple:
        return shown(lambda now: browser.beside(now, 1), picture, names, values, request)

    def random_picture(picture: Picture | None, names: list[str], values: dict, request: gr.Request) -> tuple:
        return shown(lambda now: browser.any(), picture, names, values, request)

    def chosen_picture(
        picture: Picture | None, names: list[str], values: dict, text: str, request: gr.Request
    ) -> tuple:
        return shown(lambda now: browser.by_text(text), picture, names, values, request)

    def sent_picture(
        picture: Picture | None, names: list[str], values: dict, content: bytes | None, request: gr.Request
    ) -> tuple:
        return shown(lambda now: _sent(content), picture, names, values, request)

    inputs = [page.picture, page.methods, page.options]
    page.previous.click(previous_picture, inputs, outputs, **QUICK)
    page.next.click(next_picture, inputs, outputs, **QUICK)
    page.random.click(random_picture, inputs, outputs, **QUICK)
    page.image_id.submit(chosen_picture, [*inputs, page.image_id], outputs, **QUICK)
    page.upload.upload(sent_picture, [*inputs, page.upload], outputs, **QUICK)


def _sent(content: bytes | None) -> Picture:
    return Picture(image=decode_upload(content or b""), title="Your picture")


# -- options ----------------------------------------------------------------------------------------------------


def wire_options(page: Page, app: gr.Blocks, copying: Callable[..., Any]) -> None:
    """Controls of the chosen methods, made from their fields.

    Args:
        page: the page.
        app: the application around it.
        copying: makes an event bring the code to copy up to date (a state's own change event does not reach it).
    """
    with page.option_holder:

        @gr.render(inputs=[page.methods, page.options], triggers=[app.load, page.methods.change])
        def controls(names: list[str], values: dict[str, Any]) -> None:
            if not names:
                gr.Markdown("Choose a method first.")
            for name in names:
                described = controls_of(name)
                gr.Markdown(f"**{name}**" + ("" if described else " has no options."), elem_classes="vg-option-head")
                for control in described:
                    component = option_component(control, values.get(control.key, control.default))
                    change = functools.partial(_set_option, control.key)
                    changed = component.change(change, [page.options, component], page.options, **QUICK)
                    copying(changed.then)


def _set_option(key: str, values: dict[str, Any], value: Any) -> dict[str, Any]:
    return {**values, key: value}


def option_component(control: OptionControl, value: Any) -> Any:
    """The Gradio component of an option."""
    common: dict[str, Any] = {
        "label": control.name.replace("_", " "),
        "info": control.help,
        "key": control.key,
        "interactive": True,
        "elem_id": f"vg-option-{control.method}-{control.name}",
    }
    if control.kind == "slider":
        return limited(gr.Slider(control.low, control.high, value=value, step=control.step, **common))
    if control.kind == "choice":
        return gr.Dropdown(list(control.choices), value=value, **common)
    if control.kind == "switch":
        return gr.Checkbox(bool(value), **common)
    text = "" if value is None else str(value)
    return gr.Textbox(text, max_length=200, placeholder="default" if control.default in (None, "") else "", **common)


# -- copy -------------------------------------------------------------------------------------------------------


def wire_copying(page: Page, app: gr.Blocks) -> Callable[..., Any]:
    """Keep the code to copy in step with the settings.

    Returns:
        What makes a further event do so.
    """
    inputs = [page.methods, page.options, page.prompt, page.seed, page.max_tokens, page.temperature]
    name = page.context.model_name

    def copies(names: list[str], values: dict, prompt: str, seed: float, tokens: float, temperature: float) -> tuple:
        try:
            settings = settings_of(seed, tokens, temperature)
            chosen_methods(names, values)
            return as_python(name, names, values, prompt, settings), as_command(name, names, values, prompt, settings)
        except Exception as error:
            return (f"# error: {told(error)}",) * 2

    outputs = [page.python, page.command]
    triggers = [app.load, *(item.change for item in inputs if item is not page.options)]
    gr.on(triggers, copies, inputs, outputs, trigger_mode="always_last", **QUICK)
    return lambda event: event(copies, inputs, outputs, **QUICK)
