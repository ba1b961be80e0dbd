"""How probable the plain model finds every token of answers that exist, with their pictures or without.

The prompts are read once and the answers behind them as one batch, each token's probability from the position in front
of it. Where a prompt cannot be shared (see `SharedPrompt`), the model is led along the answers token by token.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlm_guard.grounding.shared_prompt import SharedPrompt, read_along
from vlm_guard.method.branch_prompt import BranchPrompt, GivenPrompt, image_markers

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

ROWS_AT_ONCE = 8
"""So many answers are read in one pass, whose logits are all kept until it ends."""


def answer_log_probs(
    guard: "Guard",
    inputs: Mapping[str, Any],
    prompt: GivenPrompt,
    answers: Sequence[tuple[int, Sequence[int]]],
    *,
    pictures: bool = True,
) -> list[Tensor]:
    """Log-probability of every token of answers.

    Args:
        guard: of the model; its methods stand aside.
        inputs: of `generate`.
        prompt: what was asked.
        answers: the prompt of each, and its ids.
        pictures: False cuts the pictures and the markers around them out of the prompts.

    Returns:
        For each answer [T] float32.
    """
    target = guard.target
    asked = prompt.same() if pictures else prompt.without_images(image_markers(target.model, target.processor))
    spoken = [number for number, (_, ids) in enumerate(answers) if ids]
    found = [torch.zeros(len(ids)) for _, ids in answers]
    if not spoken:
        return found
    read = SharedPrompt.read(guard, inputs, asked, looks_ahead=False, pictures=pictures)
    if read is None:
        led = [list(answers[number][1]) for number in spoken]
        kept = [answers[number][0] for number in spoken]
        for number, values in zip(spoken, _led_along(guard, inputs, asked, kept, led, pictures)):
            found[number] = values
        return found
    for start in range(0, len(spoken), ROWS_AT_ONCE):
        part = spoken[start : start + ROWS_AT_ONCE]
        rows, tails = [answers[number][0] for number in part], [list(answers[number][1]) for number in part]
        logits = read.all_logits(rows, tails)
        for place, number in enumerate(part):
            ids = torch.tensor(tails[place], device=logits.device)
            first = read.first_logits(rows[place])
            before = torch.cat((first[None], logits[place, : len(ids) - 1]))
            found[number] = before.float().log_softmax(-1).gather(1, ids[:, None])[:, 0].cpu()
    return found


def _led_along(
    guard: "Guard",
    inputs: Mapping[str, Any],
    asked: BranchPrompt,
    rows: Sequence[int],
    tails: Sequence[Sequence[int]],
    pictures: bool,
) -> list[Tensor]:
    """The same by decoding the answers, those of one prompt one after another."""
    found: list[Tensor | None] = [None] * len(tails)
    waiting: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        waiting.setdefault(row, []).append(number)
    while any(waiting.values()):
        turn = {row: numbers.pop(0) for row, numbers in waiting.items() if numbers}
        led = _Led([list(tails[turn[row]]) if row in turn else [] for row in range(len(asked.input_ids))])
        logits = read_along(guard, inputs, asked, led.length, LogitsProcessorList([led]), pictures=pictures)
        for row, number in turn.items():
            ids = torch.tensor(list(tails[number]), device=logits.device)
            scores = logits[: len(ids), row].float().log_softmax(-1)
            found[number] = scores.gather(1, ids[:, None])[:, 0].cpu()
    return [values for values in found if values is not None]


class _Led(LogitsProcessor):
    """Leaves only the next token of known answers possible; a row whose answer has ended repeats token 0."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self._answers = answers
        self._step = 0

    @property
    def length(self) -> int:
        return max(map(len, self._answers))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(self._answers):
            forced[row, ids[self._step] if self._step < len(ids) else 0] = 0
        self._step += 1
        return forced
