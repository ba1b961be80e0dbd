"""Two requests about the same pictures answered side by side.

A method may compare where the model looks for a question and where for a description. Both prompts begin alike,
pictures included, so that the second one copies the keys of the first for as long as they agree; and both answers are
rows of the same decoding passes. That is what a contrast does, but that here each branch goes on with its own tokens.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from vlm_guard.contrast.branch_inputs import BranchInputs
from vlm_guard.contrast.branched_generate import ContrastGenerate
from vlm_guard.contrast.branched_model import BranchedModel, StandIn
from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.branch_prompt import BranchPrompt
from vlm_guard.method.contrasting import Branch
from vlm_guard.method.early_exit import StopForward

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.base import Method

# (sequences [N, P + t], logits [N, V]) -> logits; a LogitsProcessorList is one.
LogitsChange = Callable[[Any, Any], Tensor]


class AnswerPair(ContrastGenerate):
    """A `custom_generate` callable that answers two prompts greedily and returns the first one's sequences.

    It ends when the first prompt of every row is answered.

    Args:
        guard: of the model; it has no contrast method.
        method: who asks, for error messages.
        second: the other prompt of every row.
        inputs: of `generate` for the prompt that `second` was made from.
    """

    def __init__(self, guard: "Guard", method: "Method", second: BranchPrompt, inputs: Mapping[str, Any]) -> None:
        super().__init__(guard.target, method, inputs, guard=guard)
        self.second = second
        self._model: _PairedModel | None = None
        self._logits_processor: LogitsChange = LogitsProcessorList()

    @property
    def second_answer(self) -> Tensor:
        """[B, T] tokens of the second answer, as many as the first one has.

        Raises:
            RuntimeError: nothing was answered yet.
        """
        if self._model is None:
            raise RuntimeError("there is no second answer before generate has run with this AnswerPair")
        return self._model.answer

    def __call__(
        self, model: GenerativeModel, input_ids: Tensor, logits_processor: Any, *args: Any, **keywords: Any
    ) -> Tensor:
        """Answer both; the arguments are those that `generate` passes."""
        self._logits_processor = logits_processor
        return super().__call__(model, input_ids, logits_processor, *args, **keywords)

    def _stand_in(self, model: GenerativeModel, input_ids: Tensor, model_kwargs: dict[str, Any]) -> StandIn:
        every = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        branch = Branch(prompt=self.second, images="same", active=every)
        token_ids = self.target.architecture.visual_token_ids
        self._model = _PairedModel(
            self._logits_processor, model, self.method, branch, self.inputs, token_ids, guard=self.guard
        )
        return self._model


class _PairedModel(BranchedModel):
    """Two branches, each of which goes on with the tokens that it finds most probable.

    Args:
        logits_processor: what `generate` does to the logits before it chooses.
        *arguments: of `BranchedModel`.
        **keywords: of `BranchedModel`.

    Attributes:
        answer: [N, t] tokens of the second branch.
    """

    def __init__(self, logits_processor: LogitsChange, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.logits_processor = logits_processor
        self.answer = self.branch.prompt.input_ids[:, :0]

    def _tails(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        return sequences[:, self.given.length :], self.answer

    def _combine(self, given: Tensor, second: Tensor, step: int) -> Tensor:
        """The first branch's logits, for the loop to choose from; the second's choice is made here."""
        sequences = torch.cat((self.second.input_ids, self.answer), 1)
        token = self.logits_processor(sequences, second.float()).argmax(-1, keepdim=True)
        self.answer = torch.cat((self.answer, token), 1)
        return given.float()

    def _read(self, part: BranchInputs, index: int, generation_config: GenerationConfig) -> Any:
        try:
            return super()._read(part, index, generation_config)
        except StopForward:
            # Whoever has seen enough of the first prompt wants to see the second one too.
            if index:
                raise
            return None
