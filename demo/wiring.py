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
from vlm_guard.demo.marked_answer import message_html
from vlm_guard.demo.method_options import OptionControl, chosen_methods, controls_of
from vlm_guard.demo.pictures import Picture
from vlm_guard.demo.uploads import decode_upload

_log = logging.getLogger(__name__)
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden"}
QUICK = {"queue": False, "show_progress": "hidden"}
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


def wire_pictures(page: Page) -> None:
    """Browse, choose by id, send one."""
    browser = page.context.browser
    outputs = [page.picture, page.picture_panel, page.picture_error]

    def shown(get: Callable[[Picture], Picture], picture: Picture | None) -> tuple:
        try:
            chosen = get(picture or browser.first())
        except Exception as error:
            return gr.skip(), gr.skip(), message_html("error", told(error))
        return chosen, panels.picture_html(chosen, len(browser.ids)), ""

    def previous_picture(picture: Picture | None) -> tuple:
        return shown(lambda now: browser.beside(now, -1), picture)

    def next_picture(picture: Picture | None) -> tuple:
        return shown(lambda now: browser.beside(now, 1), picture)

    def random_picture(picture: Picture | None) -> tuple:
        return shown(lambda now: browser.any(), picture)

    def chosen_picture(picture: Picture | None, text: str) -> tuple:
        return shown(lambda now: browser.by_text(text), picture)

    def sent_picture(picture: Picture | None, content: bytes | None) -> tuple:
        return shown(lambda now: Picture(image=decode_upload(content or b""), title="Your picture"), picture)

    page.previous.click(previous_picture, page.picture, outputs, **QUICK)
    page.next.click(next_picture, page.picture, outputs, **QUICK)
    page.random.click(random_picture, page.picture, outputs, **QUICK)
    page.image_id.submit(chosen_picture, [page.picture, page.image_id], outputs, **QUICK)
    page.upload.upload(sent_picture, [page.picture, page.upload], outputs, **QUICK)


# -- options ----------------------------------------------------------------------------------------------------


def wire_options(page: Page, app: gr.Blocks) -> None:
    """Controls of the chosen methods, made from their fields."""
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
                    component.change(change, [page.options, component], page.options, **QUICK)


def _set_option(key: str, values: dict[str, Any], value: Any) -> dict[str, Any]:
    return {**values, key: value}


def option_component(control: OptionControl, value: Any) -> Any:
    """The Gradio component of an option."""
    common = {
        "label": control.name.replace("_", " "),
        "info": control.help,
        "key": control.key,
        "elem_id": f"vg-option-{control.method}-{control.name}",
    }
    if control.kind == "slider":
        return gr.Slider(control.low, control.high, value=value, step=control.step, **common)
    if control.kind == "choice":
        return gr.Dropdown(list(control.choices), value=value, **common)
    if control.kind == "switch":
        return gr.Checkbox(bool(value), **common)
    text = "" if value is None else str(value)
    return gr.Textbox(text, max_length=200, placeholder="default" if control.default in (None, "") else "", **common)


# -- copy -------------------------------------------------------------------------------------------------------


def wire_copying(page: Page, app: gr.Blocks) -> None:
    """Keep the code to copy in step with the settings."""
    inputs = [page.methods, page.options, page.prompt, page.seed, page.max_tokens, page.temperature]
    name = page.context.model_name

    def copies(names: list[str], values: dict, prompt: str, seed: float, tokens: float, temperature: float) -> tuple:
        try:
            settings = settings_of(seed, tokens, temperature)
            chosen_methods(names, values)
            return as_python(name, names, values, prompt, settings), as_command(name, names, values, prompt, settings)
        except Exception as error:
            return (f"# error: {told(error)}",) * 2

    triggers = [app.load, *(item.change for item in inputs)]
    gr.on(triggers, copies, inputs, [page.python, page.command], trigger_mode="always_last", **QUICK)
