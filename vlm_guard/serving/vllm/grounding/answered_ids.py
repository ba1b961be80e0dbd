"""A prompt of token ids with a picture, whose answer is to be scored, for programs that make their own prompts."""

from collections.abc import Sequence
from typing import Any

import torch

from vlm_guard.grounding.presence import Questions
from vlm_guard.grounding.settings import QUESTION
from vlm_guard.guard import Guard


class AnsweredIds:
    """A prompt and its answer.

    Args:
        guard: of the model, which need not be loaded.
        ids: of the prompt, each picture one placeholder.
        picture: a `PIL.Image.Image`.
        answer: its text.
    """

    shows_picture = True

    def __init__(self, guard: Guard, ids: Sequence[int], picture: Any, answer: str) -> None:
        given = torch.tensor([list(ids)])
        self._questions = Questions.of(guard, given, torch.ones_like(given), QUESTION)
        self._ids = list(ids)
        self._picture = picture
        self.answer = answer

    @property
    def prompt(self) -> dict[str, Any]:
        """The prompt, as vLLM's `LLM.generate` takes it."""
        return self._request(self._ids)

    def question(self, text: str) -> dict[str, Any]:
        """The same with `text` asked in the place of what was."""
        return self._request([*self._questions.begins[0][0], *self._questions.put(0, text)[0]])

    def _request(self, ids: list[int]) -> dict[str, Any]:
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": self._picture}}
