"""Wiring of the tab "How sure"."""

import gradio as gr

from vlm_guard.demo.answering import Answer
from vlm_guard.demo.comparing import Comparison
from vlm_guard.demo.layout import Page
from vlm_guard.demo.marked_answer import message_html
from vlm_guard.demo.sure_panel import SURE_HINT, Checked, mention_html, sure_html
from vlm_guard.demo.wiring import ONE_AT_A_TIME, QUEUE_FULL, QUICK, told
from vlm_guard.eval.scenes.recognise import SCORES_SAY_NOTHING

Selection = tuple[str, int] | None


def wire_sure(page: Page) -> None:
    """Check both answers, press a mention, switch repair on and off."""

    def caution(comparison: Comparison) -> str:
        return SCORES_SAY_NOTHING if page.context.note_about(comparison.picture) else ""

    def check(comparison: Comparison | None, repair: bool) -> tuple:
        try:
            sides = _sides(comparison)
            if comparison is None or not sides:
                raise ValueError("there is no answer to check yet; press “Compare” first")
            checked = page.context.check(comparison)
            return checked, None, sure_html(sides, checked, repair, None, caution(comparison)), ""
        except Exception as error:
            return None, None, message_html("error", told(error)), ""

    def press(comparison: Comparison | None, checked: Checked | None, repair: bool, event: gr.EventData) -> tuple:
        side, number = getattr(event, "side", None), getattr(event, "word", None)
        if comparison is None or checked is None or checked.number != comparison.number:
            return gr.skip(), SURE_HINT, ""
        if side not in ("plain", "guarded") or not isinstance(number, int):
            return gr.skip(), gr.skip(), gr.skip()
        mentions = checked.answers[side].mentions
        if not 0 <= number < len(mentions):
            return gr.skip(), gr.skip(), gr.skip()
        shown = sure_html(_sides(comparison), checked, repair, (side, number), caution(comparison))
        return (
            (side, number),
            shown,
            mention_html(comparison.picture.image, mentions[number], page.context.score_weights(mentions[number])),
        )

    def switch(comparison: Comparison | None, checked: Checked | None, repair: bool, selection: Selection) -> str:
        if comparison is None or checked is None or checked.number != comparison.number:
            return SURE_HINT
        return sure_html(_sides(comparison), checked, repair, selection, caution(comparison))

    def forget(comparison: Comparison | None, checked: Checked | None) -> tuple:
        """Scores belong to one pair of answers."""
        if comparison is not None and checked is not None and checked.number == comparison.number:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return None, None, SURE_HINT, ""

    state = [page.checked, page.sure_selection, page.sure_words, page.sure]
    asked = page.check.click(check, [page.comparison, page.repair], state, **ONE_AT_A_TIME)
    asked.failure(lambda: message_html("error", QUEUE_FULL), None, page.sure_words, **QUICK)
    pressed = [page.sure_selection, page.sure_words, page.sure]
    page.sure_words.select(press, [page.comparison, page.checked, page.repair], pressed, **QUICK)
    page.repair.input(
        switch, [page.comparison, page.checked, page.repair, page.sure_selection], page.sure_words, **QUICK
    )
    page.tabs.select(forget, [page.comparison, page.checked], state, **QUICK)


def _sides(comparison: Comparison | None) -> dict[str, Answer]:
    """The answers that are there in full."""
    if comparison is None:
        return {}
    both = {side: comparison.answer(side) for side in ("plain", "guarded")}
    return {side: answer for side, answer in both.items() if answer is not None and answer.ending != "running"}
