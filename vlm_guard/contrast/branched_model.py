"""A stand-in for the model whose forward pass runs two branches and returns one set of logits."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from vlm_guard.contrast.branch_cache import (
    PairedCaches,
    branch_caches,
    can_merge,
    decoding_cache,
    merge_caches,
    prompt_cache,
    reorder_together,
)
from vlm_guard.contrast.branch_inputs import BranchInputs, given_inputs, joint_step_kwargs, prepare_branch
from vlm_guard.contrast.shared_prefix import copy_prefix, shared_prefix
from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.families.family import entry_of
from vlm_guard.method.contrasting import Branch
from vlm_guard.runtime.branch_rows import BranchRows
from vlm_guard.runtime.embedded_prompt import PromptEmbedder

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.base import Method


class StandIn(AbstractContextManager):
    """Everything of a model but its forward pass, which a generation loop reaches through the methods below.

    Attributes:
        owns_cache: whether the cache that the loop sees holds more than the given rows.
    """

    owns_cache: ClassVar[bool] = False

    def __init__(self, model: GenerativeModel) -> None:
        self.model = model
        self.forward: Callable[..., Any] = model.__call__

    def __getattr__(self, name: str) -> Any:
        # Only reached for what this class does not define.
        return getattr(self.model, name)

    def __exit__(self, *exception: object) -> None:
        """End of the generation."""

    def get_compiled_call(self, compile_config: Any) -> Callable[..., Any]:
        """The loop asks for a compiled forward pass: compile the model's, and go on through the stand-in."""
        self.forward = self.model.get_compiled_call(compile_config)
        return self.__call__

    def __call__(self, *args: Any, **model_inputs: Any) -> ModelOutput:
        """One decoding step."""
        raise TypeError(f"{type(self).__name__} must define its forward pass")


class BranchedModel(StandIn):
    """Two branches as one model.

    The prompts are read apart; then their caches are merged and each step is one forward pass over the rows of both.
    Without a cache, and for models whose caches cannot be merged, a step is one forward pass per branch.

    Args:
        model: the model.
        method: combines the logits.
        branch: the second branch.
        inputs: what `generate` was given.
        visual_token_ids: ids that stand for patches of images and videos.
        marker_ids: ids of markers that the model embeds together with the image they stand around.
        guard: whose attention edits keep to the rows of their branch.
        embedder: makes the branch's embeddings where `model` is the inner one of a family that generates from them.
    """

    owns_cache = True

    def __init__(
        self,
        model: GenerativeModel,
        method: "Method",
        branch: Branch,
        inputs: Mapping[str, Any],
        visual_token_ids: tuple[int, ...],
        *,
        marker_ids: tuple[int, ...] = (),
        guard: "Guard | None" = None,
        embedder: PromptEmbedder | None = None,
    ) -> None:
        super().__init__(model)
        self.method = method
        self.embedder = embedder
        self.branch = branch
        self.inputs = inputs
        self.visual_token_ids = visual_token_ids
        self.marker_ids = marker_ids
        self.methods = () if guard is None else guard.methods
        self.branch_rows = None if guard is None else BranchRows(guard.reading, branch.sign)
        # Cross-attention layers cache an image instead of the prompt: neither a prefix nor padded rows of it.
        self.reads_across = bool(entry_of(model.config.model_type).cross_attention)
        self._given: BranchInputs | None = None
        self._second: BranchInputs | None = None
        self.step_kwargs: dict[str, Any] | None = None

    def __exit__(self, *exception: object) -> None:
        """Leave the guard with the state of the positive branch."""
        if self.branch_rows is not None:
            self.branch_rows.close()

    @property
    def given(self) -> BranchInputs:
        """The prompt of `generate`, once it is read.

        Raises:
            RuntimeError: it is not.
        """
        if self._given is None:
            raise RuntimeError("the prompt has to be read before the model decodes")
        return self._given

    @property
    def second(self) -> BranchInputs:
        """The prompt of the second branch, once it is made.

        Raises:
            RuntimeError: it is not.
        """
        if self._second is None:
            raise RuntimeError("the prompt of the second branch has to be made before the model decodes")
        return self._second

    # -- what a generation loop calls -------------------------------------------------------------------------

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict,
        is_first_iteration: bool = True,
    ) -> Any:
        prepared_cache = model_kwargs.get("past_key_values")
        self._given = given_inputs(input_ids, model_kwargs)
        with self._encoding():
            self._second = prepare_branch(
                self.model, self.branch, self.inputs, self.given, generation_config, embedder=self.embedder
            )
        self._give_caches()
        outputs = [self._read(part, index, generation_config) for index, part in enumerate((self.given, self.second))]
        first, second = (output.logits[:, -1] for output in outputs)
        logits = self._combine(first, second, step=0)
        cache = self._join_caches(prepared_cache)
        return stand_in_output(logits, cache, outputs[0].get("hidden_states"))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The sequence so far; the step itself prepares the rest for both branches."""
        return {"sequences": input_ids}

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict, **keywords: Any) -> dict:
        # Masks and positions of both branches are kept by the stand-in; the loop only reorders the cache.
        cache = outputs.past_key_values
        return model_kwargs if cache is None else {**model_kwargs, "past_key_values": cache}

    def __call__(self, sequences: Tensor, return_dict: bool = True) -> ModelOutput:
        """One decoding step of both branches after `sequences` [N, P + generated]."""
        step = sequences.shape[1] - self.given.length
        tails = self._tails(sequences)
        if self.step_kwargs is None:
            parts = zip((self.given, self.second), tails)
            outputs = [self._step_apart(part, index, tail) for index, (part, tail) in enumerate(parts)]
            first, second = (output.logits[:, -1] for output in outputs)
            logits = self._combine(first, second, step=step)
            return stand_in_output(logits, self._paired, outputs[0].get("hidden_states"))
        rows = sequences.shape[0]
        inputs = self.model.prepare_inputs_for_generation(
            torch.cat([tail[:, -1:] for tail in tails]), next_sequence_length=1, **self.step_kwargs
        )
        output = self.forward(**inputs, return_dict=True)
        self.step_kwargs = self.model._update_model_kwargs_for_generation(
            output, self.step_kwargs, is_encoder_decoder=False
        )
        last = output.logits[:, -1]
        logits = self._combine(last[:rows], last[rows:], step=step)
        hidden = output.get("hidden_states")
        hidden = None if hidden is None else tuple(None if layer is None else layer[:rows] for layer in hidden)
        return stand_in_output(logits, self.step_kwargs["past_key_values"], hidden)

    # -- parts ------------------------------------------------------------------------------------------------

    def _tails(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """[N, t] generated tokens that each branch goes on with: the same for both."""
        tail = sequences[:, self.given.length :]
        return tail, tail

    def _combine(self, given: Tensor, second: Tensor, step: int) -> Tensor:
        """[N, V] float32 logits of the rows of `generate`."""
        given, second = given.float(), second.float()
        positive, negative = (second, given) if self.branch.sign == "positive" else (given, second)
        combined = self.method.combine_logits(positive, negative, step)
        active = self.branch.active.repeat_interleave(given.shape[0] // self.branch.active.shape[0])
        return torch.where(active.to(given.device)[:, None], combined, given)

    def _give_caches(self) -> None:
        """A cache to read its prompt into for each branch."""
        if not self.given.model_kwargs.get("use_cache", True):
            return
        if self.reads_across:
            caches = prompt_cache(self.model), prompt_cache(self.model)
        else:
            caches = branch_caches(self.model, self.given.input_ids.shape[0], (self.given.length, self.second.length))
        for part, cache in zip((self.given, self.second), caches):
            part.model_kwargs["past_key_values"] = cache

    def _read(self, part: BranchInputs, index: int, generation_config: GenerationConfig) -> Any:
        """Read a branch's prompt into its cache."""
        kept = self._copy_shared_prefix(generation_config) if index else 0
        with self._reading(index, part):
            if kept:
                inputs = self.model.prepare_inputs_for_generation(
                    part.input_ids, next_sequence_length=part.length - kept, **part.model_kwargs
                )
                output = self.model(**inputs, return_dict=True)
            else:
                output = self.model._prefill(part.input_ids, generation_config, part.model_kwargs)
        part.model_kwargs.update(
            self.model._update_model_kwargs_for_generation(output, part.model_kwargs, is_encoder_decoder=False)
        )
        return output

    def _copy_shared_prefix(self, generation_config: GenerationConfig) -> int:
        """Fill the second branch's cache with the keys of the beginning that both prompts have in common."""
        source, target = (part.model_kwargs.get("past_key_values") for part in (self.given, self.second))
        if source is None or target is None or generation_config.prefill_chunk_size is not None or self.reads_across:
            return 0
        length = shared_prefix(
            self.branch,
            self.given,
            self.second,
            source,
            self.methods,
            self.branch.sign,
            self.visual_token_ids,
            self.marker_ids,
        )
        if length:
            copy_prefix(self.given, self.second, source, target, length)
        return length

    def _join_caches(self, prepared_cache: Any) -> Any:
        first, second = (part.model_kwargs.get("past_key_values") for part in (self.given, self.second))
        self._paired = PairedCaches(first, second)
        if first is None or second is None or not self.given.model_kwargs.get("use_cache", True):
            return None
        if self.reads_across or not can_merge(first, second, (self.given.length, self.second.length)):
            return self._paired
        target = decoding_cache(prepared_cache, self.model, self.second.length - self.given.length)
        length = merge_caches(target, first, second)
        rows = self.given.input_ids.shape[0]
        reorder_together(target, rows)
        self.step_kwargs = joint_step_kwargs(self.given, self.second, length, target)
        for part in (self.given, self.second):
            part.model_kwargs.clear()
        if self.branch_rows is not None:
            self.branch_rows.merge(target, rows, length)
        return target

    def _step_apart(self, part: BranchInputs, index: int, tail: Tensor) -> Any:
        """One step of one branch with a cache of its own, or without any."""
        kwargs = part.model_kwargs
        input_ids = torch.cat((part.input_ids, tail), 1)
        inputs = self.model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=1 if kwargs["use_cache"] else None, **kwargs
        )
        with self._stepping(index):
            output = self.forward(**inputs, return_dict=True)
        kwargs.update(self.model._update_model_kwargs_for_generation(output, kwargs, is_encoder_decoder=False))
        return output

    def _encoding(self) -> AbstractContextManager:
        return nullcontext() if self.branch_rows is None else self.branch_rows.encoding()

    def _reading(self, index: int, part: BranchInputs) -> AbstractContextManager:
        return nullcontext() if self.branch_rows is None else self.branch_rows.reading(index, part)

    def _stepping(self, index: int) -> AbstractContextManager:
        return nullcontext() if self.branch_rows is None else self.branch_rows.stepping(index)


def stand_in_output(logits: Tensor, cache: Any, hidden_states: Any) -> ModelOutput:
    """What the loops read of a forward pass: logits [N, 1, V] and what else there is."""
    return CausalLMOutputWithPast(logits=logits[:, None], past_key_values=cache, hidden_states=hidden_states)
