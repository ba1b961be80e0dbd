"""From a pressed word to the panel that shows where the model looked."""

from vlm_guard.demo.comparing import Comparison
from vlm_guard.demo.context import DemoContext
from vlm_guard.demo.findings_panel import findings_html
from vlm_guard.demo.look_panel import LookSettings, look_html
from vlm_guard.demo.marked_answer import message_html


def look_at(context: DemoContext, comparison: Comparison, side: str, word: int, settings: LookSettings) -> str:
    """The panel for one word of one answer, as HTML.

    Both models are led along that answer once (kept for the next words), so that they can be compared. Where the
    methods cannot be applied, the plain model is shown alone, with the reason.

    Raises:
        ValueError: there is no such answer, word, layer or head.
    """
    records, failure = context.records_of(comparison, side)
    answer = comparison.answer(side)
    shown = look_html(() if answer is None else answer.words, word, records, settings)
    if failure:
        return message_html("error", failure) + shown
    return shown + findings_html(records["plain"].view, records["guarded"].findings)
