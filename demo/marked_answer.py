"""An answer as HTML: object mentions marked, changed words marked, every word a button."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm_guard.demo.answering import Answer
from vlm_guard.demo.words import Word
from vlm_guard.eval.tasks.chair.scoring import CaptionScore, ChairScorer, read_caption

Truth = Literal["grounded", "hallucinated", "neutral"]
SIGNS: dict[Truth, tuple[str, str]] = {
    "grounded": ("✓", "in the picture"),
    "hallucinated": ("✗", "not in the picture"),
    "neutral": ("?", "not known whether in the picture"),
}
_PUNCTUATION = ".,;:!?)]}\"'”’"
ENDINGS = {"limit": "cut at the token limit", "stopped": "stopped", "running": "", "finished": ""}

# Gradio's HTML component passes its value through templates; these characters must reach the page as text.
_TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})


def escape(text: object) -> str:
    """Any text as HTML that shows it literally, also in attributes and in Gradio's templates."""
    return html.escape(str(text), quote=True).translate(_TEMPLATE_CHARACTERS)


@dataclass(frozen=True, kw_only=True)
class MarkedMention:
    """An object mention: where it is in the text, and whether the picture has the object."""

    start: int
    end: int
    node: str
    truth: Truth


def mentions_of(text: str, objects: Sequence[str] | None) -> list[MarkedMention]:
    """The object mentions of an answer, by CHAIR's rules.

    Args:
        text: the answer.
        objects: the objects of the picture, or None where they are not known: all mentions are neutral then.
    """
    found = []
    for mention in read_caption(text).mentions:
        truth: Truth = "neutral"
        if objects is not None:
            truth = "grounded" if mention.node in objects else "hallucinated"
        found.append(MarkedMention(start=mention.start, end=mention.end, node=mention.node, truth=truth))
    return found


def changed_words(words: Sequence[Word], other: Sequence[Word]) -> set[int]:
    """Numbers of the words that the other answer does not have, in any place, case and punctuation aside."""
    theirs = {bare(word).lower() for word in other}
    return {number for number, word in enumerate(words) if bare(word).lower() not in theirs}


def answer_html(
    side: str, answer: Answer, other: Answer | None, objects: Sequence[str] | None, selected: int | None = None
) -> str:
    """The answer's text with its marks.

    Args:
        side: "plain" or "guarded"; goes into the word buttons.
        answer: the answer; one that still grows has no marks yet.
        other: the answer to compare with, if it is complete.
        objects: the picture's objects, or None.
        selected: number of the word that is being looked at.
    """
    if answer.ending == "running":
        return f'<p class="vg-answer vg-growing">{escape(answer.text)}<span class="vg-caret"></span></p>'
    if not answer.words:
        return '<p class="vg-answer vg-empty">The model said nothing.</p>'
    changed = changed_words(answer.words, other.words) if other is not None and other.words else set()
    mentions = mentions_of(answer.text, objects)
    parts, place = [], 0
    while place < len(answer.words):
        mention = next((item for item in mentions if _touches(answer.words[place], item)), None)
        stop = place + 1
        while mention is not None and stop < len(answer.words) and _touches(answer.words[stop], mention):
            stop += 1
        last = answer.words[stop - 1]
        # The punctuation behind a word is set behind the mention's sign.
        texts = [word.text for word in answer.words[place : stop - 1]] + [bare(last)]
        buttons = " ".join(
            _button(side, place + offset, text, place + offset in changed, place + offset == selected)
            for offset, text in enumerate(texts)
        )
        if mention is not None:
            buttons = _mention(buttons, mention)
        behind = escape(last.text[len(bare(last)) :])
        # A line may break around a button: the full stop must not begin the next one.
        parts.append(f'<span class="vg-kept">{buttons}{behind}</span>' if behind else buttons)
        place = stop
    return f'<p class="vg-answer">{" ".join(parts)}</p>'


def bare(word: Word) -> str:
    """The word without the punctuation behind it."""
    return word.text.rstrip(_PUNCTUATION) or word.text


def _touches(word: Word, mention: MarkedMention) -> bool:
    return word.start < mention.end and word.end > mention.start


def _button(side: str, number: int, text: str, changed: bool, selected: bool) -> str:
    names = ["vg-word"] + ["vg-changed"] * changed + ["vg-selected"] * selected
    pressed = ' aria-pressed="true"' if selected else ""
    hint = "Not in the other answer. " if changed else ""
    return (
        f'<button type="button" class="{" ".join(names)}" data-side="{escape(side)}" data-word="{number}"{pressed} '
        f'title="{hint}See where the model looked">{escape(text)}</button>'
    )


def _mention(buttons: str, mention: MarkedMention) -> str:
    sign, meaning = SIGNS[mention.truth]
    return (
        f'<span class="vg-mention vg-{mention.truth}" data-node="{escape(mention.node)}">{buttons}'
        f'<span class="vg-sign" aria-hidden="true">{sign}</span><span class="vg-unseen"> ({meaning})</span></span>'
    )


def caption_score(answer: Answer, objects: Sequence[str] | None) -> CaptionScore | None:
    """CHAIR of one answer; None where the picture's objects are not known."""
    return None if objects is None else ChairScorer({0: list(objects)}).score(0, answer.text)


def facts_html(answer: Answer, objects: Sequence[str] | None) -> str:
    """The line under an answer: CHAIR, recall, length, time."""
    if answer.ending == "running":
        return '<p class="vg-facts" aria-hidden="true">answering …</p>'
    facts = []
    score = caption_score(answer, objects)
    if score is None:
        count = len(mentions_of(answer.text, None))
        facts.append(f"{count} object mention{'s' * (count != 1)}, truth not known")
    else:
        wrong, mentioned = len(score.hallucinated_mentions), len(score.mentions)
        rate = f" (CHAIR<sub>i</sub> {100 * score.chair_i:.0f} %)" if mentioned else ""
        facts.append(f"<strong>{wrong} of {mentioned}</strong> mentions hallucinated{rate}")
        facts.append(f"{len(score.recalled_objects)} of {len(score.objects)} objects named")
    words = len(answer.words)
    facts += [
        f"{words} word{'s' * (words != 1)}",
        f"{answer.seconds:.2f} s, {answer.tokens_per_second:.0f} tokens/s",
    ]
    if ENDINGS[answer.ending]:
        facts.append(f"<em>{ENDINGS[answer.ending]}</em>")
    return f'<p class="vg-facts">{"".join(f"<span>{fact}</span>" for fact in facts)}</p>'


def card_html(side: str, title: str, body: str) -> str:
    """An answer's card. `title` is text, `body` is HTML."""
    heading = {"plain": "Plain", "guarded": "Guarded"}[side]
    subtitle = f'<span class="vg-subtitle">{escape(title)}</span>' if title else ""
    opening = f'<section class="vg-card vg-card-{side}" aria-label="{heading} answer">'
    return f"{opening}<h3>{heading}{subtitle}</h3>{body}</section>"


def legend_html(known: bool) -> str:
    """What the marks mean. `known`: whether the picture's objects are known."""
    truths: tuple[Truth, ...] = ("grounded", "hallucinated") if known else ("neutral",)
    items = []
    for truth in truths:
        sign, meaning = SIGNS[truth]
        items.append(
            f'<li><span class="vg-mention vg-{truth}"><span class="vg-word">object</span>'
            f'<span class="vg-sign" aria-hidden="true">{sign}</span></span> {meaning}</li>'
        )
    items.append('<li><span class="vg-word vg-changed">word</span> is not in the other answer</li>')
    items.append("<li>click a word to see where the model looked</li>")
    note = (
        "Mentions are found by CHAIR's rules (80 MSCOCO classes) and checked against the picture's annotations."
        if known
        else "What is in this picture is not known here, so mentions are only marked as such."
    )
    return f'<div class="vg-legend"><ul aria-label="Legend">{"".join(items)}</ul><p>{note}</p></div>'


def message_html(kind: Literal["error", "note"], text: str) -> str:
    """A message in the page; an error has the words the command line would print."""
    if not text:
        return ""
    if kind == "error":
        sign = '<span aria-hidden="true">⚠</span>'
        return f'<div class="vg-message vg-error" role="alert">{sign} error: {escape(text)}</div>'
    return f'<div class="vg-message vg-note" role="status">{escape(text)}</div>'
