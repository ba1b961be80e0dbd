"""Wiring of the tab "Ask it"."""

from collections.abc import Iterator

import gradio as gr

from vlm_guard.demo.layout import Page
from vlm_guard.demo.marked_answer import message_html
from vlm_guard.demo.method_options import chosen_methods, setting_text
from vlm_guard.demo.pictures import Picture
from vlm_guard.demo.visitors import Visitors
from vlm_guard.demo.wiring import ONE_AT_A_TIME, QUEUE_FULL, QUICK, told
from vlm_guard.demo.yes_no import AskedQuestion, ask, ladder, ladder_html, own_question, summary

NOTHING_KNOWN = (
    "what is in this picture is not known here, so there are no questions with known answers; ask one of your own"
)


def wire_questions(page: Page, visitors: Visitors) -> None:
    """The ladder, a visitor's own question, stop."""
    context = page.context
    shown = [page.ladder, page.ask, page.ask_stop]

    def prepare(request: gr.Request) -> tuple:
        visitors.begin(request.session_hash)
        return (gr.skip(), *_buttons(True))

    def answers(
        picture: Picture, rows: list[AskedQuestion], names: list[str], values: dict, leading: bool, template: str,
        request: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        title, session = setting_text(names, values), request.session_hash
        stop = visitors.current(session)
        methods = chosen_methods(names, values)
        yield (ladder_html(rows, leading, title, template), *_buttons(True))
        current = rows
        for current in ask(context.model, picture, rows, methods, leading, template, stop):
            if not visitors.is_current(session, stop):
                break
            yield (_with_summary(current, leading, title, template), *_buttons(True))
        # A visitor who has gone on to another picture gets no table about the last one.
        kept = visitors.is_current(session, stop)
        yield (_with_summary(current, leading, title, template) if kept else gr.skip(), *_buttons(False))

    def ask_ladder(
        picture: Picture | None, names: list[str], values: dict, leading: bool, template: str, request: gr.Request
    ) -> Iterator[tuple]:
        try:
            picture = picture or context.first_picture
            rows = ladder(context.browser.questions(picture))
            if not rows:
                raise ValueError(NOTHING_KNOWN)
            yield from answers(picture, rows, names, values, leading, template, request)
        except Exception as error:
            yield (message_html("error", told(error)), *_buttons(False))

    def ask_own(
        picture: Picture | None, text: str, names: list[str], values: dict, leading: bool, template: str,
        request: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        try:
            picture = picture or context.first_picture
            yield from answers(picture, [own_question(text, picture)], names, values, leading, template, request)
        except Exception as error:
            yield (message_html("error", told(error)), *_buttons(False))

    def halt(request: gr.Request) -> None:
        visitors.stop(request.session_hash)

    common = [page.methods, page.options, page.leading, page.template]

    waiting = (page.ask.click(prepare, None, shown, **QUICK), page.own.submit(prepare, None, shown, **QUICK))
    asking = (
        waiting[0].then(ask_ladder, [page.picture, *common], shown, **ONE_AT_A_TIME),
        waiting[1].then(ask_own, [page.picture, page.own, *common], shown, **ONE_AT_A_TIME),
    )
    for event in asking:
        event.failure(_turned_away, None, shown, **QUICK)
    page.ask_stop.click(halt, None, None, **QUICK)


def _buttons(running: bool) -> tuple:
    """Ask and Stop, usable or not."""
    return gr.Button(interactive=not running), gr.Button(interactive=running)


def _turned_away() -> tuple:
    return (message_html("error", QUEUE_FULL), *_buttons(False))


def _with_summary(rows: list[AskedQuestion], leading: bool, title: str, template: str) -> str:
    text = summary(rows, leading)
    return ladder_html(rows, leading, title, template) + (message_html("note", text) if text else "")
