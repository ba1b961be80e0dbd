"""Wiring of the tabs "Compare" and "Where it looked"."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from vlm_guard.demo import panels
from vlm_guard.demo.comparing import Comparison, compare, search_example
from vlm_guard.demo.context import DemoContext
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


@dataclass(kw_only=True, eq=False)
class ComparisonActions:
    """What the buttons of the comparison do; every result begins with the values of the shown components."""

    context: DemoContext
    visitors: Visitors

    def prepare(
        self,
        picture: Picture | None,
        prompt: str,
        names: list[str],
        values: dict[str, Any],
        seed: float,
        tokens: float,
        temperature: float,
        request: gr.Request,
    ) -> tuple:
        """Before the request waits for its turn: check it, empty the cards, make Stop usable."""
        self.visitors.begin(request.session_hash)
        try:
            comparison = Comparison(
                picture=picture or self.context.first_picture,
                prompt=prompt or "",
                settings=settings_of(seed, tokens, temperature),
                methods=tuple(names),
                options=values,
            )
        except Exception as error:
            return (None, *_unchanged(2), message_html("error", told(error)), *_buttons(False))
        return (comparison, *_cards(comparison), panels.below_html(comparison), *_buttons(True))

    def run(self, comparison: Comparison | None, request: gr.Request) -> Iterator[tuple]:
        """The two answers as they grow; nothing more once the visitor has turned to something else."""
        if comparison is None:
            yield (*_unchanged(4), *_buttons(False))
            return
        session = request.session_hash
        current, stop = comparison, self.visitors.current(session)
        try:
            for current in compare(self.context.model, comparison, stop):
                if not self.visitors.is_current(session, stop):
                    break
                yield (current, *_cards(current), gr.skip(), *_buttons(True))
            if self.visitors.is_current(session, stop):
                yield (current, *_cards(current), panels.below_html(current), *_buttons(False))
            else:
                yield (*_unchanged(4), *_buttons(False))
        except Exception as error:
            failed = replace(current, error=told(error))
            yield (failed, *_cards(failed), panels.below_html(failed), *_buttons(False))

    def search(self, comparison: Comparison | None, request: gr.Request) -> Iterator[tuple]:
        """Picture after picture until the guard helps; the picture and its panel come before the rest."""
        if comparison is None:
            yield (*_unchanged(6), *_buttons(False))
            return
        session, browser = request.session_hash, self.context.browser
        stop = self.visitors.current(session)
        try:
            for current, note, _ in search_example(self.context.model, browser, comparison, stop):
                if not self.visitors.is_current(session, stop):
                    break
                note_about = self.context.note_about(current.picture)
                picture = (current.picture, panels.picture_html(current.picture, len(browser.ids), note_about))
                yield (*picture, current, *_cards(current), panels.below_html(current, note), *_buttons(True))
            yield (*_unchanged(6), *_buttons(False))
        except Exception as error:
            yield (*_unchanged(5), message_html("error", told(error)), *_buttons(False))

    def words(self, comparison: Comparison | None) -> tuple:
        """What "Where it looked" shows before a word is pressed: nothing selected, the words, no maps."""
        return None, panels.look_words_html(comparison), ""

    def halt(self, request: gr.Request) -> None:
        """Stop what this visitor waits for."""
        self.visitors.stop(request.session_hash)

    def turned_away(self) -> tuple:
        """The queue was full: say so and make the buttons usable again."""
        return (message_html("error", QUEUE_FULL), *_buttons(False))


def wire_comparison(page: Page, visitors: Visitors) -> None:
    """Compare, find an example, stop."""
    act = ComparisonActions(context=page.context, visitors=visitors)
    asked = [page.picture, page.prompt, page.methods, page.options, page.seed, page.max_tokens, page.temperature]
    shown = [page.comparison, page.plain_card, page.guarded_card, page.below, page.run, page.stop, page.search]
    looked = [page.selection, page.look_words, page.look]
    found = [page.picture, page.picture_panel, *shown]
    for trigger, answer, outputs in (
        (page.run.click, act.run, shown),
        (page.prompt.submit, act.run, shown),
        (page.search.click, act.search, found),
    ):
        prepared = trigger(act.prepare, asked, shown, **QUICK)
        # What was looked at belongs to the answers that are going.
        prepared.then(act.words, page.comparison, looked, **QUICK)
        asking = prepared.then(answer, page.comparison, outputs, **ONE_AT_A_TIME)
        asking.failure(act.turned_away, None, shown[3:], **QUICK)
        asking.then(act.words, page.comparison, looked, **QUICK)
    page.stop.click(act.halt, None, None, **QUICK)


def wire_look(page: Page) -> None:
    """Press a word, choose layer and head."""
    settings = [page.layer, page.head, page.absolute]

    def press(comparison: Comparison | None, before: tuple[str, int] | None, event: gr.EventData) -> tuple:
        side, word = getattr(event, "side", None), getattr(event, "word", None)
        if comparison is None or side not in ("plain", "guarded") or not isinstance(word, int):
            return _unchanged(4)
        words = panels.look_words_html(comparison, side, word, "reading")
        # The last maps stay until the new ones are there: a page that shrinks and grows again scrolls away.
        maps = panels.READING_MAPS if before is None else gr.skip()
        return (side, word), words, maps, gr.Tabs(selected="look")

    def look(
        comparison: Comparison | None, selection: tuple[str, int] | None, layer: str, head: str, absolute: bool
    ) -> tuple:
        if comparison is None or selection is None:
            return panels.look_words_html(comparison), ""
        words = panels.look_words_html(comparison, *selection, hint="again")
        try:
            chosen = LookSettings(layer=layer, head=head, absolute=bool(absolute))
            return words, look_at(page.context, comparison, *selection, chosen)
        except Exception as error:
            return words, message_html("error", told(error))

    pressed = [page.selection, page.look_words, page.look, page.tabs]
    for panel in (page.plain_card, page.guarded_card, page.look_words):
        panel.select(press, [page.comparison, page.selection], pressed, **QUICK).then(
            look, [page.comparison, page.selection, *settings], [page.look_words, page.look], **ONE_AT_A_TIME
        )
    for setting in settings:
        asked = [page.comparison, page.selection, *settings]
        setting.input(look, asked, [page.look_words, page.look], **ONE_AT_A_TIME)
