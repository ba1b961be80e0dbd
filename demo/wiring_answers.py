"""Wiring of the tabs "Compare" and "Where it looked"."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vlm_guard.demo import panels
from vlm_guard.demo.comparing import Comparison, compare, search_example
from vlm_guard.demo.layout import Page
from vlm_guard.demo.look_panel import LookSettings
from vlm_guard.demo.looking import look_at
from vlm_guard.demo.marked_answer import message_html
from vlm_guard.demo.pictures import Picture
from vlm_guard.demo.visitors import Visitors
from vlm_guard.demo.wiring import ONE_AT_A_TIME, QUEUE_FULL, QUICK, settings_of, told


def _buttons(running: bool) -> tuple:
    """Compare, Stop and Find, usable or not."""
    return gr.Button(interactive=not running), gr.Button(interactive=running), gr.Button(interactive=not running)


def _cards(comparison: Comparison) -> tuple[str, str]:
    return panels.side_html("plain", comparison), panels.side_html("guarded", comparison)


def _unchanged(count: int) -> tuple:
    return (gr.skip(),) * count


def wire_comparison(page: Page, visitors: Visitors) -> None:
    """Compare, find an example, stop."""
    context, total = page.context, len(page.context.browser.ids)
    asked = [page.picture, page.prompt, page.methods, page.options, page.seed, page.max_tokens, page.temperature]
    shown = [page.comparison, page.plain_card, page.guarded_card, page.below, page.run, page.stop, page.search]

    def prepare(
        picture: Picture | None,
        prompt: str,
        names: list[str],
        values: dict[str, Any],
        seed: float,
        tokens: float,
        temperature: float,
        request: gr.Request,
    ) -> tuple:
        visitors.begin(request.session_hash)
        try:
            comparison = Comparison(
                picture=picture or context.first_picture,
                prompt=prompt or "",
                settings=settings_of(seed, tokens, temperature),
                methods=tuple(names),
                options=values,
            )
        except Exception as error:
            return (None, *_unchanged(2), message_html("error", told(error)), *_buttons(False))
        return (comparison, *_cards(comparison), panels.below_html(comparison), *_buttons(True))

    def run(comparison: Comparison | None, request: gr.Request) -> Iterator[tuple]:
        if comparison is None:
            yield (*_unchanged(4), *_buttons(False))
            return
        current, stop = comparison, visitors.current(request.session_hash)
        try:
            for current in compare(context.model, comparison, stop):
                if not visitors.is_current(request.session_hash, stop):
                    break
                yield (current, *_cards(current), gr.skip(), *_buttons(True))
            if visitors.is_current(request.session_hash, stop):
                yield (current, *_cards(current), panels.below_html(current), *_buttons(False))
            else:
                yield (*_unchanged(4), *_buttons(False))
        except Exception as error:
            yield (*_unchanged(3), message_html("error", told(error)), *_buttons(False))

    def search(comparison: Comparison | None, request: gr.Request) -> Iterator[tuple]:
        if comparison is None:
            yield (*_unchanged(6), *_buttons(False))
            return
        stop = visitors.current(request.session_hash)
        try:
            for current, note, _ in search_example(context.model, context.browser, comparison, stop):
                if not visitors.is_current(request.session_hash, stop):
                    break
                picture = (current.picture, panels.picture_html(current.picture, total))
                yield (*picture, current, *_cards(current), panels.below_html(current, note), *_buttons(True))
            yield (*_unchanged(6), *_buttons(False))
        except Exception as error:
            yield (*_unchanged(5), message_html("error", told(error)), *_buttons(False))

    def halt(request: gr.Request) -> None:
        visitors.stop(request.session_hash)

    def turned_away() -> tuple:
        return (message_html("error", QUEUE_FULL), *_buttons(False))

    after_failure = {"outputs": shown[3:], **QUICK}
    for trigger in (page.run.click, page.prompt.submit):
        asking = trigger(prepare, asked, shown, **QUICK).then(run, page.comparison, shown, **ONE_AT_A_TIME)
        asking.failure(turned_away, **after_failure)
    searching = page.search.click(prepare, asked, shown, **QUICK).then(
        search, page.comparison, [page.picture, page.picture_panel, *shown], **ONE_AT_A_TIME
    )
    searching.failure(turned_away, **after_failure)
    page.stop.click(halt, None, None, **QUICK)


def wire_look(page: Page) -> None:
    """Press a word, choose layer and head."""
    settings = [page.layer, page.head, page.absolute]

    def press(comparison: Comparison | None, event: gr.EventData) -> tuple:
        side, word = getattr(event, "side", None), getattr(event, "word", None)
        if comparison is None or side not in ("plain", "guarded") or not isinstance(word, int):
            return _unchanged(4)
        words = panels.look_words_html(comparison, side, word)
        return (
            (side, word),
            words,
            message_html("note", "Reading the attention along this answer …"),
            gr.Tabs(selected="look"),
        )

    def look(
        comparison: Comparison | None, selection: tuple[str, int] | None, layer: str, head: str, absolute: bool
    ) -> str:
        if comparison is None or selection is None:
            return ""
        try:
            chosen = LookSettings(layer=layer, head=head, absolute=bool(absolute))
            return look_at(page.context, comparison, *selection, chosen)
        except Exception as error:
            return message_html("error", told(error))

    pressed = [page.selection, page.look_words, page.look, page.tabs]
    for panel in (page.plain_card, page.guarded_card, page.look_words):
        panel.select(press, page.comparison, pressed, **QUICK).then(
            look, [page.comparison, page.selection, *settings], page.look, **ONE_AT_A_TIME
        )
    for setting in settings:
        setting.input(look, [page.comparison, page.selection, *settings], page.look, **ONE_AT_A_TIME)
