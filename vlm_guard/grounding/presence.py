"""The self-check: the plain model is asked whether a thing is in the picture.

    Is there a dog in the image?      value = logit(Yes) - logit(No)

The question takes the place of the prompt's own behind the picture. All questions about a batch share the prompt up to
there, which is read once with its pictures; then all questions are read together as one batch behind it. In families
whose prompts look ahead (PaliGemma), or whose caches hold more than keys, the first questions about every row are read
as one batch of whole prompts, then the second ones, and so on.

"Yes" and "No" stand for all their spellings that are one token (with a space, in lower case), or for the first tokens
of their spellings where none is; the logits of one word's spellings are added as probabilities are (logsumexp).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_guard.grounding.settings import QUESTION
from vlm_guard.grounding.shared_prompt import AnsweredPrompt, SharedPrompt, asked_inputs, read_alone, require_prompt
from vlm_guard.method.branch_prompt import INSERTED, BranchPrompt, image_markers
from vlm_guard.method.contrasting import padding_id
from vlm_guard.method.question_place import answer_opening, question_range

if TYPE_CHECKING:
    from vlm_guard.grounding.lens import VisualStates
    from vlm_guard.guard import Guard

Row = tuple[list[int], list[int]]


def self_check(
    guard: "Guard",
    inputs: Mapping[str, Any],
    nouns: Sequence[Sequence[str]],
    *,
    question: str = QUESTION,
    shared: bool = True,
    states: "VisualStates | None" = None,
    answered: "AnsweredPrompt | None" = None,
) -> list[list[float]]:
    """logit(Yes) - logit(No) of the question whether a thing is in the picture, answered by the plain model.

    Args:
        guard: of the model; its methods stand aside. It needs the processor.
        inputs: of `generate`, with `input_ids` [B, P] and the pictures.
        nouns: for each of the B rows, things in the singular ("dog", "dining table").
        question: with `{noun}`, for which the thing with its article is put.
        shared: read what all questions have in common once; False reads every question with its whole prompt.
        states: keeps the hidden states of visual tokens of the given prompts, if given.
        answered: the plain model's own `generate` call with these inputs, whose keys then need not be made again.

    Returns:
        For each row, one value for each of its things; above 0 means yes.

    Raises:
        ValueError: no processor, no picture in a row that is asked about, or a question without `{noun}`.
    """
    if "{noun}" not in question:
        raise ValueError(f"the question {question!r} must contain {{noun}}, for example {QUESTION!r}")
    prompt = require_prompt(guard, inputs, "the self-check")
    if len(nouns) != len(prompt.input_ids):
        raise ValueError(f"the prompt has {len(prompt.input_ids)} rows, nouns were given for {len(nouns)}")
    pairs = [(row, noun) for row, listed in enumerate(nouns) for noun in listed]
    if not pairs:
        return [[] for _ in nouns]
    askable = prompt.has_image.tolist()
    lacking = next((row for row, _ in pairs if not askable[row]), None)
    if lacking is not None:
        raise ValueError(f"row {lacking} has no picture to ask about; give nouns only for rows with one")
    questions = Questions.of(guard, prompt.input_ids, prompt.attention_mask, question)
    asked = [questions.ask(row, noun) for row, noun in pairs]
    values = None
    # Markers are embedded together with their picture, so a text with one cannot be read without it.
    markers = {*guard.target.architecture.marker_ids, *guard.target.architecture.visual_token_ids}
    if shared and not any(markers & set(tail) for tail, _ in asked):
        beginning = questions.beginning()
        read = None if answered is None or states is not None else answered.beginning(guard, inputs, beginning)
        if read is None:
            read = SharedPrompt.read(guard, inputs, beginning, states)
        if read is not None:
            logits = read.last_logits([row for row, _ in pairs], [tail for tail, _ in asked])
            values = questions.difference(logits).tolist()
    if values is None:
        if states is not None:
            # In a prompt that looks ahead the picture's tokens know what is asked: the lens reads the given prompt.
            read_alone(guard, asked_inputs(guard, inputs, prompt.same()), states)
        values = _ask_in_turn(guard, inputs, questions, pairs)
    found: list[list[float]] = [[] for _ in nouns]
    for (row, _), value in zip(pairs, values, strict=True):
        found[row].append(value)
    return found


def with_article(noun: str) -> str:
    """A noun with its article: "a dog", "an orange"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def question_about(question: str, noun: str) -> str:
    """The question with a thing, and its article, in the place of `{noun}`."""
    return question.replace("{noun}", with_article(noun))


def answer_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that spell Yes, and those that spell No.

    Raises:
        ValueError: the tokenizer has no token of its own for one of them.
    """
    yes, no = (_first_tokens(tokenizer, word) for word in ("Yes", "No"))
    yes, no = yes - no, no - yes
    if not yes or not no:
        raise ValueError("this tokenizer has no tokens that tell Yes from No, so the model cannot be asked")
    return sorted(yes), sorted(no)


def _first_tokens(tokenizer: Any, word: str) -> set[int]:
    forms = (word, f" {word}", word.lower(), f" {word.lower()}")
    unknown = getattr(tokenizer, "unk_token_id", None)
    spelled = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    spelled = [ids for ids in spelled if ids and unknown not in ids]
    return {ids[0] for ids in spelled if len(ids) == 1} or {ids[0] for ids in spelled}


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """How a batch of prompts is asked about things.

    Attributes:
        begins: per row its ids up to the question and their places in the given prompt.
        closings: per row the ids behind the question, which make the model answer, and their places.
        spaces: per row the white space in front of the question and behind it.
        tokenizer, text, pad_id, device: what prompts are made with.
        answers: first tokens of Yes, and of No.
    """

    begins: list[Row]
    closings: list[Row]
    spaces: list[tuple[str, str]]
    tokenizer: Any
    text: str
    pad_id: int
    device: torch.device
    answers: tuple[list[int], list[int]]

    @classmethod
    def of(cls, guard: "Guard", input_ids: Tensor, attention_mask: Tensor, text: str) -> "Questions":
        """How the prompts `input_ids` [B, P], padded where `attention_mask` is 0, are asked `text` with `{noun}`."""
        target = guard.target
        tokenizer, opening = target.processor.tokenizer, answer_opening(target.processor)
        visual = target.architecture.visual_token_ids
        # Markers behind a picture are read with it: some are embedded with it, some see all of it.
        markers = image_markers(target.model, target.processor).union(target.architecture.marker_ids)
        begins, closings, spaces = [], [], []
        for ids, real in zip(input_ids.tolist(), attention_mask.bool().tolist()):
            places = [place for place, is_real in enumerate(real) if is_real]
            row = [ids[place] for place in places]
            start, stop = question_range(row, (*visual, *markers), tokenizer, opening)
            words = tokenizer.decode(row[start:stop], clean_up_tokenization_spaces=False)
            spaces.append(
                (words[: len(words) - len(words.lstrip())], words[len(words.rstrip()) :] if words.strip() else "")
            )
            end = _first_opening(row, stop, tokenizer, opening)
            begins.append((row[:start], places[:start]))
            closings.append((row[stop:end], places[stop:end]))
        return cls(
            begins=begins,
            closings=closings,
            spaces=spaces,
            tokenizer=tokenizer,
            text=text,
            pad_id=padding_id(target.model, target.processor, visual),
            device=input_ids.device,
            answers=answer_ids(tokenizer),
        )

    def ask(self, row: int, noun: str) -> Row:
        """The ids behind the beginning of a row that ask about a thing, and their places in the given prompt."""
        return self.put(row, question_about(self.text, noun))

    def put(self, row: int, text: str) -> Row:
        """The same for a question in words."""
        front, back = self.spaces[row]
        ids = self.tokenizer.encode(front + text + back, add_special_tokens=False)
        closing, places = self.closings[row]
        return ids + closing, [INSERTED] * len(ids) + places

    def beginning(self) -> BranchPrompt:
        """What all questions about a row have in common."""
        return BranchPrompt.from_rows(self.begins, [True] * len(self.begins), self.pad_id, self.device)

    def whole(self, tails: Sequence[Row]) -> BranchPrompt:
        """Every row with one question."""
        rows = [(ids + tail, places + behind) for (ids, places), (tail, behind) in zip(self.begins, tails, strict=True)]
        return BranchPrompt.from_rows(rows, [True] * len(rows), self.pad_id, self.device)

    def difference(self, logits: Tensor) -> Tensor:
        """[N] logit(Yes) - logit(No) of [N, V]."""
        yes, no = (logits[:, ids].float().logsumexp(-1) for ids in self.answers)
        return yes - no


def _first_opening(row: list[int], stop: int, tokenizer: Any, opening: str | None) -> int:
    """Where the answer to the question begins: in a conversation it is followed by more turns."""
    wanted = tokenizer.encode(opening, add_special_tokens=False) if opening else []
    if not wanted:
        return len(row)
    places = (place for place in range(stop, len(row) - len(wanted) + 1) if row[place : place + len(wanted)] == wanted)
    return next((place + len(wanted) for place in places), len(row))


def _ask_in_turn(
    guard: "Guard",
    inputs: Mapping[str, Any],
    questions: Questions,
    pairs: Sequence[tuple[int, str]],
) -> list[float]:
    """One pass over whole prompts for the first question of every row, one for the second ones, ..."""
    of_row: dict[int, list[int]] = {}
    for number, (row, _) in enumerate(pairs):
        of_row.setdefault(row, []).append(number)
    values = [0.0] * len(pairs)
    for turn in range(max(map(len, of_row.values()))):
        numbers = {row: listed[turn] for row, listed in of_row.items() if turn < len(listed)}
        # A row that has no more questions repeats its first one, or asks about anything.
        tails = [
            questions.ask(row, pairs[numbers.get(row, of_row.get(row, [0])[0])][1])
            for row in range(len(questions.begins))
        ]
        given = asked_inputs(guard, inputs, questions.whole(tails))
        difference = questions.difference(read_alone(guard, given)).tolist()
        for row, number in numbers.items():
            values[number] = difference[row]
    return values
