"""The tab "How sure": every thing that an answer mentions underlined by verdict, its box in the picture, repair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image, ImageDraw

from vlm_guard.demo.answering import Answer
from vlm_guard.demo.heat_maps import data_uri, enlarge
from vlm_guard.demo.marked_answer import bare, escape, message_html
from vlm_guard.demo.words import Word
from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.mention import Mention, Verdict
from vlm_guard.grounding.presence import with_article
from vlm_guard.grounding.repair import Removed, Repaired
from vlm_guard.grounding.score import THRESHOLD

Side = Literal["plain", "guarded"]
SIDES: tuple[Side, ...] = get_args(Side)
SURE_HINT = '<p class="vg-hint">Press “Check both answers”: the model is asked about everything that it mentioned.</p>'
SIGNS: dict[Verdict, tuple[str, str]] = {
    "grounded": ("✓", "the picture supports it"),
    "doubtful": ("✗", "doubtful"),
    "unchecked": ("?", "not checked"),
}
# The marks of the page: solid, wavy and dotted underlines, so that colour is not needed.
_MARKS: dict[Verdict, str] = {"grounded": "vg-grounded", "doubtful": "vg-hallucinated", "unchecked": "vg-neutral"}
_PARTS = {
    "lens": ("what the picture's own tokens say", "log-probability, 0 at most"),
    "self_check": ("asked “Is there {noun} in the image?”", "above 0 is yes"),
    "position": ("place in the answer", "tokens in front of it"),
}
_BOX_COLOUR = "#d55e00"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """Both answers of one comparison, scored.

    Attributes:
        number: of the comparison.
        answers: by side, "plain" and "guarded".
    """

    number: int
    answers: Mapping[Side, GroundedAnswer]


def sure_words_html(side: str, answer: Answer, grounded: GroundedAnswer, selected: int | None = None) -> str:
    """One answer with its mentions as buttons.

    Args:
        side: "plain" or "guarded"; goes into the buttons.
        answer: the answer with its words.
        grounded: the same answer, scored.
        selected: number of the mention that is shown.
    """
    if not answer.words:
        return '<p class="vg-answer vg-empty">The model said nothing.</p>'
    parts, place = [], 0
    while place < len(answer.words):
        number = _mention_at(grounded.mentions, answer.words[place])
        stop = place + 1
        while (
            number is not None and stop < len(answer.words) and _touches(answer.words[stop], grounded.mentions[number])
        ):
            stop += 1
        last = answer.words[stop - 1]
        words = [word.text for word in answer.words[place : stop - 1]] + [bare(last)]
        text = escape(" ".join(words))
        if number is not None:
            text = _button(side, number, text, grounded.mentions[number], number == selected)
        behind = escape(last.text[len(bare(last)) :])
        parts.append(f'<span class="vg-kept">{text}{behind}</span>' if behind and number is not None else text + behind)
        place = stop
    return f'<p class="vg-answer">{" ".join(parts)}</p>'


def sure_html(
    sides: Mapping[str, Answer],
    checked: Checked | None,
    repair: bool,
    selection: tuple[str, int] | None = None,
    caution: str = "",
) -> str:
    """Both answers with their marks, and below each what repair leaves of it.

    Args:
        sides: the answers.
        checked: the same, scored; None before they are.
        repair: whether the repaired answers are shown.
        selection: the mention that is shown.
        caution: what must be known before the marks are believed.
    """
    if checked is None or not sides:
        return SURE_HINT
    parts = [message_html("note", caution)]
    for side, answer in sides.items():
        grounded = checked.answers["plain" if side == "plain" else "guarded"]
        chosen = selection[1] if selection is not None and selection[0] == side else None
        body = sure_words_html(side, answer, grounded, chosen)
        if repair:
            body += _repaired_html(grounded)
        parts.append(f'<div class="vg-strip"><h4>{side.capitalize()}</h4><div>{body}</div></div>')
    return "".join(parts) + _legend()


def mention_html(image: Image.Image, mention: Mention, weights: Mapping[str, float] | None = None) -> str:
    """One mention: the picture with its box, the score, and what it is made of.

    Args:
        image: the picture.
        mention: one of `Checked`.
        weights: of its parts, with "bias", as the model's profile has them; None where the score is not fitted.
    """
    sign, meaning = SIGNS[mention.verdict]
    score = "not checked" if mention.score is None else f"score {mention.score:.2f}"
    rows = "".join(
        f"<tr><th scope='row'>{escape(_PARTS[name][0].replace('{noun}', with_article(mention.noun)))}</th>"
        f"<td>{value:+.1f}<small>{_PARTS[name][1]}</small></td></tr>"
        for name, value in mention.parts.items()
    )
    table = f'<table class="vg-parts"><tbody>{rows}</tbody></table>' if rows else ""
    if rows:
        table += f'<p class="vg-fine">{_formula(mention, weights)}</p>'
    heading = (
        f'<p class="vg-looking"><span class="vg-mention {_MARKS[mention.verdict]}"><span class="vg-word">'
        f'{escape(mention.text)}</span><span class="vg-sign" aria-hidden="true">{sign}</span></span> '
        f"<strong>{meaning}</strong>, {score}.</p>"
    )
    return f'<div class="vg-sure-mention">{_boxed(image, mention)}<div>{heading}{table}</div></div>'


def _formula(mention: Mention, weights: Mapping[str, float] | None) -> str:
    """One sentence on how the parts make the score."""
    if weights is None:
        return "The score is the mean of the log odds that these parts stand for, as a probability; it is not fitted."
    terms = " ".join(
        f"{'+' if weights[name] >= 0 else '−'} {abs(weights[name]):.2f} × ({mention.parts[name]:+.1f})"
        for name in mention.parts
    )
    return (
        f"The score is 1 / (1 + e<sup>−x</sup>) with x = {weights['bias']:.2f} {terms}, in the order of the lines "
        "above; the weights are those of the model's profile, fitted on pictures whose objects are known."
    )


def _boxed(image: Image.Image, mention: Mention) -> str:
    shown = enlarge(image).convert("RGB")
    where = "No place in the picture is known for it."
    if mention.box is not None:
        left, top, right, bottom = mention.box.pixels(*shown.size)
        pen = ImageDraw.Draw(shown)
        width = max(3, shown.width // 120)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline="#ffffff", width=width + 2)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=_BOX_COLOUR, width=width)
        box = mention.box
        across, down = (
            f"{100 * box.left:.0f} to {100 * box.right:.0f} %",
            f"{100 * box.top:.0f} to {100 * box.bottom:.0f} %",
        )
        where = f"Read most clearly here: {across} from the left, {down} from the top."
    return (
        f'<figure class="vg-map"><img src="{data_uri(shown)}" alt="The picture with a box around '
        f'{escape(mention.text)}: {escape(where)}"><p>{escape(where)}</p></figure>'
    )


def _repaired_html(grounded: GroundedAnswer) -> str:
    repaired = grounded.repaired
    if repaired is None:
        return ""
    if not repaired.removed:
        return f'<p class="vg-fine">Repair takes nothing out of it. {_limit(repaired)}</p>'
    text = escape(repaired.text) if repaired.text else "(nothing is left)"
    gone = "; ".join(f"<del>{escape(part.text)}</del> ({_HOW[part.how]})" for part in repaired.removed)
    return (
        f'<p class="vg-answer vg-repaired"><strong>Repaired:</strong> {text}</p>'
        f'<p class="vg-fine">{_count(repaired)}: {gone}. {_limit(repaired)}</p>'
    )


def _limit(repaired: Repaired) -> str:
    """What repair takes out, and what stays although it is doubtful."""
    below = THRESHOLD if repaired.below is None else repaired.below
    said = f"It takes out what scores below {below:.2f}"
    if below >= THRESHOLD:
        return f"{said}: all that is doubtful."
    return (
        f"{said} only. A doubtful mention (below {THRESHOLD:.2f}) that scores more stays: cutting all of those would "
        "cost things that are there."
    )


_HOW = {"sentence": "whole sentence", "item": "item of a list", "phrase": "phrase", "rewritten": "written again"}


def _count(repaired: Repaired) -> str:
    parts: Sequence[Removed] = repaired.removed
    return f"Taken out, {len(parts)} part{'s' * (len(parts) != 1)}"


def _mention_at(mentions: Sequence[Mention], word: Word) -> int | None:
    return next((number for number, mention in enumerate(mentions) if _touches(word, mention)), None)


def _touches(word: Word, mention: Mention) -> bool:
    return word.start < mention.end and word.end > mention.start


def _button(side: str, number: int, text: str, mention: Mention, selected: bool) -> str:
    sign, meaning = SIGNS[mention.verdict]
    pressed = ' aria-pressed="true"' if selected else ""
    name = "vg-word vg-selected" if selected else "vg-word"
    return (
        f'<span class="vg-mention {_MARKS[mention.verdict]}"><button type="button" class="{name}" '
        f'data-side="{escape(side)}" data-word="{number}"{pressed} title="See why">{text}</button>'
        f'<span class="vg-sign" aria-hidden="true">{sign}</span><span class="vg-unseen"> ({meaning})</span></span>'
    )


def _legend() -> str:
    items = "".join(
        f'<li><span class="vg-mention {_MARKS[verdict]}"><span class="vg-word">word</span>'
        f'<span class="vg-sign" aria-hidden="true">{sign}</span></span> {meaning}</li>'
        for verdict, (sign, meaning) in SIGNS.items()
        if verdict != "unchecked"
    )
    return (
        f'<div class="vg-legend"><ul aria-label="Legend">{items}<li>press a word to see where and why</li></ul>'
        "<p>The scores come from the unguarded model and this picture alone; annotations play no part. They can be "
        "wrong.</p></div>"
    )
