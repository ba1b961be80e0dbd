"""The tab "Ask it": POPE's questions about one picture, neutral and leading, plain and guarded."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from vlm_guard.demo.answering import AnsweringModel, GenerationSettings
from vlm_guard.demo.marked_answer import escape
from vlm_guard.demo.pictures import Picture
from vlm_guard.eval.scenes.categories import with_article
from vlm_guard.eval.tasks.chair.scoring import read_caption
from vlm_guard.eval.tasks.pope.leading_queries import lead, suggestion
from vlm_guard.eval.tasks.pope.scoring import PopeQuestion, parse_answer
from vlm_guard.method.base import Method

ANSWER_TOKENS = 12
SIDES = ("plain", "guarded")
GROUPS = {
    "present": "In the picture",
    "random": "Absent, drawn at random",
    "popular": "Absent, frequent elsewhere",
    "adversarial": "Absent, usual company of what is there",
    "own": "Your question",
}


@dataclass(frozen=True, kw_only=True)
class AskedQuestion:
    """A question with the answers so far.

    Attributes:
        text: the neutral question. label: yes, no, or empty where the truth is not known.
        group: key of `GROUPS`.
        answers: text of each answer by (side, leading).
    """

    text: str
    label: str
    group: str
    answers: dict[tuple[str, bool], str] = field(default_factory=dict)

    def said(self, side: str, leading: bool) -> str:
        """yes, no, unparsed, or empty when not answered yet."""
        text = self.answers.get((side, leading))
        return "" if text is None else parse_answer(text)

    def gave_way(self, side: str) -> bool:
        """Whether a right answer became the suggested one; an answer that is neither yes nor no did not give way."""
        return self.said(side, False) == self.label != "" and self.said(side, True) == self.suggested

    @property
    def suggested(self) -> str:
        """The answer that the leading form suggests: the wrong one, or yes where the truth is not known."""
        return suggestion(self.label) if self.label else "yes"


def ladder(questions: Sequence[PopeQuestion]) -> list[AskedQuestion]:
    """POPE's questions without repetition, from easy to hard: present objects, then absent ones by strategy."""
    rows: dict[tuple[str, str], AskedQuestion] = {}
    for group in ("present", "random", "popular", "adversarial"):
        for question in questions:
            belongs = (
                question.label == "yes"
                if group == "present"
                else (question.label == "no" and question.strategy == group)
            )
            if belongs:
                # POPE's own words are "Is there a skis ...?"; people are shown, and models asked, a sentence.
                text = f"Is there {with_article(question.object)} in the image?"
                rows.setdefault((group, question.object), AskedQuestion(text=text, label=question.label, group=group))
    return list(rows.values())


def own_question(text: str, picture: Picture) -> AskedQuestion:
    """A visitor's question; its truth is known if it names one object class and the picture's objects are known.

    Raises:
        ValueError: the question is empty.
    """
    text = text.strip()
    if not text:
        raise ValueError("the question is empty; write for example 'Is there a dog in the image?'")
    nodes = {mention.node for mention in read_caption(text).mentions}
    label = ""
    if picture.objects is not None and len(nodes) == 1 and text.lower().startswith("is there a"):
        label = "yes" if nodes <= set(picture.objects) else "no"
    return AskedQuestion(text=text, label=label, group="own")


def ask(
    model: AnsweringModel,
    picture: Picture,
    rows: Sequence[AskedQuestion],
    methods: Sequence[Method],
    leading: bool,
    template: str,
    stop: threading.Event,
) -> Iterator[list[AskedQuestion]]:
    """All rows with ever more answers.

    Args:
        model: answers.
        picture: what is asked about.
        rows: the questions.
        methods: what guards the guarded answers.
        leading: also ask each question with a sentence that suggests the wrong answer.
        template: name of the leading sentence, one of `LEADING_TEMPLATES`.
        stop: set to end early.

    Raises:
        ValueError: a method cannot be applied, or the template is unknown.
    """
    settings = GenerationSettings(max_new_tokens=ANSWER_TOKENS)
    current = list(rows)
    for number, row in enumerate(current):
        for is_leading in (False, True) if leading else (False,):
            text = lead(row.text, row.suggested, template) if is_leading else row.text
            for side, guarding in zip(SIDES, ((), methods)):
                answer = model.answer(picture.image, text, guarding, settings, stop)
                if stop.is_set():
                    return
                row = replace(row, answers={**row.answers, (side, is_leading): answer.text})
        current[number] = row
        yield list(current)


def summary(rows: Sequence[AskedQuestion], leading: bool) -> str:
    """Right answers of each side, and how often each gave way."""
    answered = [row for row in rows if row.label and row.said("guarded", leading)]
    if not answered:
        return ""
    parts = []
    for side in SIDES:
        right = sum(row.said(side, False) == row.label for row in answered)
        text = f"{side.capitalize()}: {right} of {len(answered)} right"
        if leading:
            gave = sum(row.gave_way(side) for row in answered)
            neither = sum(row.said(side, True) == "unparsed" for row in answered)
            text += f", gave way to the suggestion in {gave} of {right}"
            text += f", said neither yes nor no in {neither}" if neither else ""
        parts.append(text)
    return ". ".join(parts) + "."


def ladder_html(rows: Sequence[AskedQuestion], leading: bool, title: str, template: str) -> str:
    """The table of questions and answers."""
    body, group = [], ""
    columns = 2 + (4 if leading else 2)
    for row in rows:
        if row.group != group:
            group = row.group
            body.append(f'<tr class="vg-group"><th scope="rowgroup" colspan="{columns}">{GROUPS[group]}</th></tr>')
        hint = f"<small>led: “{escape(lead('', row.suggested, template).strip())}”</small>" if leading else ""
        truth = row.label or "?"
        cells = "".join(
            _cell(row, side, is_leading) for side in SIDES for is_leading in ((False, True) if leading else (False,))
        )
        body.append(f'<tr><th scope="row">{escape(row.text)}{hint}</th><td class="vg-truth">{truth}</td>{cells}</tr>')
    return f'<div class="vg-ladder"><table>{_head(leading, title)}<tbody>{"".join(body)}</tbody></table></div>'


def _head(leading: bool, title: str) -> str:
    names = ("Plain", f'Guarded <span class="vg-subtitle">{escape(title)}</span>')
    if not leading:
        sides = "".join(f'<th scope="col">{name}</th>' for name in names)
        return f'<thead><tr><th scope="col">Question</th><th scope="col">Truth</th>{sides}</tr></thead>'
    sides = "".join(f'<th scope="colgroup" colspan="2">{name}</th>' for name in names)
    ways = '<th scope="col">neutral</th><th scope="col">led</th>' * 2
    return (
        '<thead><tr><th scope="col" rowspan="2">Question</th><th scope="col" rowspan="2">Truth</th>'
        f"{sides}</tr><tr>{ways}</tr></thead>"
    )


def _cell(row: AskedQuestion, side: str, leading: bool) -> str:
    said = row.said(side, leading)
    label = {"plain": "Plain", "guarded": "Guarded"}[side] + (", led" if leading else "")
    if not said:
        return f'<td data-label="{label}"><span class="vg-waiting" aria-label="not asked yet">·</span></td>'
    shown = "neither" if said == "unparsed" else said
    full = escape(row.answers[side, leading])
    if not row.label:
        kind, sign, meaning = "neutral", "", ""
    elif said == row.label:
        kind, sign, meaning = "grounded", "✓", "right"
    else:
        kind, sign, meaning = "hallucinated", "✗", "wrong"
    note = "<em>gave way</em>" if leading and row.gave_way(side) else ""
    chip = f'{shown} <b aria-hidden="true">{sign}</b><span class="vg-unseen">{meaning}</span>'
    return f'<td data-label="{label}"><span class="vg-said vg-said-{kind}" title="{full}">{chip}</span>{note}</td>'
