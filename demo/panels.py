"""The page's fixed and changing pieces of HTML that belong to no single tab."""

from typing import Literal

from vlm_guard.demo.comparing import Comparison, verdict
from vlm_guard.demo.heat_maps import data_uri, enlarge
from vlm_guard.demo.marked_answer import answer_html, card_html, escape, facts_html, legend_html, message_html
from vlm_guard.demo.pictures import Picture

PICTURE_PIXELS = 576
LOOK_HINT = '<p class="vg-hint">There is no answer to this picture yet: press “Compare”, then press a word.</p>'
_WORD_HINTS = {
    "press": "Press a word to see where the model looked when it was about to say it.",
    "reading": "Reading the attention along this answer …",
    "again": "Press another word to look there.",
}
READING_MAPS = (
    '<div class="vg-maps vg-reading" aria-hidden="true">' + '<figure class="vg-map"><div></div></figure>' * 3 + "</div>"
)
"""Takes the place of the maps before the first ones are there, so that the page keeps its height."""
ASK_HINT = '<p class="vg-hint">No question asked yet.</p>'


def header_html(model_line: str) -> str:
    """The page's head."""
    return (
        '<header class="vg-header"><div><h1>vlm_guard</h1><p>One model answers twice: as it is, and guarded against '
        f'hallucination.</p></div><p class="vg-model">{escape(model_line)}</p></header>'
    )


def picture_html(picture: Picture, total: int, note: str = "") -> str:
    """The picture with its title, what must be said about it, and, folded away, what is in it."""
    place = f"{picture.place} of {total}" if picture.place else "your picture"
    if picture.objects is None:
        truth = "<p>What is in it is not known here.</p>"
    else:
        listed = ", ".join(map(escape, picture.objects)) or "none of the 80 object classes"
        truth = f"<details><summary>What is in it</summary><p>{listed}</p></details>"
    image = enlarge(picture.image, PICTURE_PIXELS)
    return (
        f'<figure class="vg-picture"><img src="{data_uri(image)}" alt="{escape(picture.alt_text)}">'
        f"<figcaption><span>{escape(picture.title)}</span><span>{escape(place)}</span></figcaption></figure>"
        f"{message_html('note', note)}{truth}"
    )


def side_html(side: str, comparison: Comparison, selected: int | None = None) -> str:
    """The card of one answer."""
    objects = comparison.picture.objects
    answer = comparison.answer(side)
    title = comparison.title if side == "guarded" else ""
    if answer is None:
        if comparison.error:
            return card_html(side, title, '<p class="vg-answer vg-empty">No answer: see the error below.</p>')
        if comparison.plain is not None and comparison.plain.ending == "stopped":
            return card_html(side, title, '<p class="vg-answer vg-empty">Stopped before its turn.</p>')
        waiting = "Waits for the plain answer." if side == "guarded" and comparison.plain else "Waits for the model."
        return card_html(side, title, f'<p class="vg-answer vg-empty vg-waits">{waiting}</p>')
    other = comparison.guarded if side == "plain" else comparison.plain
    if other is not None and other.ending == "running":
        other = None
    return card_html(side, title, answer_html(side, answer, other, objects, selected) + facts_html(answer, objects))


def empty_card(side: str, title: str) -> str:
    """A card before the first answer."""
    return card_html(side, title, '<p class="vg-answer vg-empty">Press “Compare” to get an answer.</p>')


def below_html(comparison: Comparison, note: str = "") -> str:
    """Error or verdict, and the legend."""
    if comparison.error:
        return message_html("error", comparison.error)
    text = note or verdict(comparison)
    hint = '<p class="vg-fine">One picture is an example, not a measurement.</p>' if text else ""
    shown = message_html("note", text) + hint if text else ""
    return shown + legend_html(comparison.picture.objects is not None)


def look_words_html(
    comparison: Comparison | None,
    side: str = "",
    word: int = -1,
    hint: Literal["press", "reading", "again"] = "press",
) -> str:
    """Both answers once more for the tab "Where it looked", the pressed word marked, under a line on what to do."""
    answers = [] if comparison is None else [comparison.plain, comparison.guarded]
    if comparison is None or all(answer is None or answer.ending == "running" for answer in answers):
        return LOOK_HINT
    parts = [f'<p class="vg-hint" role="status">{_WORD_HINTS[hint]}</p>']
    for which in ("plain", "guarded"):
        answer, other = comparison.answer(which), comparison.answer("guarded" if which == "plain" else "plain")
        if answer is not None and answer.ending != "running":
            chosen = word if which == side else None
            body = answer_html(which, answer, other, comparison.picture.objects, chosen)
            parts.append(f'<div class="vg-strip"><h4>{which.capitalize()}</h4>{body}</div>')
    return "".join(parts)
