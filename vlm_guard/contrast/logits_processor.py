"""Contrast decoding as a `LogitsProcessor`: the second branch follows whatever loop calls it.

The processor keeps a cache of its own for the branch. Each call finds, for every row, a row of its cache that begins
with the same tokens, reorders and shortens the cache accordingly, and reads what is missing; beams, samples and
prompt lookup all come down to that.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from vlm_guard.contrast.branch_cache import prompt_cache
from vlm_guard.contrast.branch_inputs import BranchInputs, given_inputs, prepare_branch
from vlm_guard.contrast.branched_generate import ContrastGenerate
from vlm_guard.contrast.read_out import reads_out
from vlm_guard.method.contrasting import Branch
from vlm_guard.method.gate import Gate
from vlm_guard.runtime.installation import GUARD_ATTRIBUTE

if TYPE_CHECKING:
    from vlm_guard.method.base import Method
    from vlm_guard.method.target import GuardTarget


class ContrastLogitsProcessor(LogitsProcessor):
    """Combines the scores it is given with those of the method's second branch.

    One processor serves one `generate` call after another with the same prompts; other prompts need another one.

    Args:
        target: the model with its shape and processor.
        method: a contrast method with a second branch.
        inputs: what `generate` is given.

    Raises:
        ValueError: the method has no second branch, or the model keeps states that cannot be taken back.
    """

    def __init__(self, target: "GuardTarget", method: "Method", inputs: Mapping[str, Any]) -> None:
        if reads_out(method, target):
            raise ValueError(f"{method.name} reads early layers, not a second branch; use wrap or contrast_generate")
        if method.overrides("edit_logits"):
            raise ValueError(f"{method.name} has no second branch to follow; use wrap or contrast_generate")
        if target.architecture.generator is not target.model:
            raise ValueError(
                f"{target.architecture.model_type} generates from embeddings, which a logits processor does not see; "
                "use wrap"
            )
        cache = prompt_cache(target.model)
        if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
            raise ValueError(
                f"{target.architecture.model_type} keeps running states, which a logits processor cannot take back; "
                "use wrap or contrast_generate"
            )
        self.generate = ContrastGenerate(target, method, inputs)
        self.gate = Gate.read(method.gate)
        self.prompt_length = _length(inputs)
        self.branch: Branch | None = None
        self.inputs: BranchInputs | None = None
        self.tail: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The combined scores.

        Args:
            input_ids: [N, P + generated].
            scores: [N, V] logits or log-probabilities of the given prompt.

        Returns:
            [N, V] float32.
        """
        target = self.generate.target
        if GUARD_ATTRIBUTE in target.model.__dict__:
            raise ValueError("the model is guarded, which would edit the branch too; give the method to wrap instead")
        tail = input_ids[:, self.prompt_length :]
        inputs = self.inputs
        if inputs is None or tail.shape[1] == 0 or inputs.input_ids.shape[0] != input_ids.shape[0]:
            inputs = self.inputs = self._begin(input_ids[:, : self.prompt_length])
        branch = self.branch
        if branch is None:
            return scores
        logits = self._follow(branch, inputs, tail)
        scores = scores.float()
        positive, negative = (logits, scores) if branch.sign == "positive" else (scores, logits)
        combined = self.generate.method.combine_logits(positive, negative, tail.shape[1])
        active = branch.active.repeat_interleave(scores.shape[0] // branch.active.shape[0])
        if self.gate is not None:
            active = active & self.gate.is_open(scores).to(active.device)
        return torch.where(active[:, None].to(scores.device), combined, scores)

    def _begin(self, prompt: Tensor) -> BranchInputs:
        """Describe the branch and prepare its inputs; nothing has been read."""
        target = self.generate.target
        mask = self.generate.inputs.get("attention_mask")
        expand = 1 if mask is None else prompt.shape[0] // mask.shape[0]
        mask = None if mask is None else mask.repeat_interleave(expand, 0)
        self.branch = self.generate.branch(prompt, {"attention_mask": mask})
        self.tail = None
        if self.branch is None:
            return given_inputs(prompt, {})
        # As `generate` would have it, but for image features: the branch encodes its own.
        wanted: dict[str, Any] = {"use_cache": True}
        if "position_ids" in inspect.signature(target.model.forward).parameters:
            wanted["position_ids"] = True
        if target.model._supports_logits_to_keep():
            wanted["logits_to_keep"] = 1
        given = given_inputs(prompt, wanted)
        config = target.model.generation_config
        return prepare_branch(target.model, self.branch, self.generate.inputs, given, config)

    def _follow(self, branch: Branch, prepared: BranchInputs, tail: Tensor) -> Tensor:
        """[N, V] logits of the branch after the generated tokens `tail` [N, t]."""
        kept = self._rewind(branch, prepared, tail)
        model, kwargs = self.generate.target.model, prepared.model_kwargs
        if kept is None:
            kwargs["past_key_values"] = prompt_cache(model)
            output = model._prefill(prepared.input_ids, model.generation_config, kwargs)
            kwargs.update(model._update_model_kwargs_for_generation(output, kwargs, is_encoder_decoder=False))
            self.tail = tail[:, :0]
            if tail.shape[1] == 0:
                return output.logits[:, -1].float()
            kept = 0
        for place in range(kept, tail.shape[1]):
            output = self._read(prepared, tail[:, place : place + 1], place)
        self.tail = tail
        return output.logits[:, -1].float()

    def _rewind(self, branch: Branch, prepared: BranchInputs, tail: Tensor) -> int | None:
        """Bring the cache to the longest beginning of `tail` that every row has; None when it is empty."""
        if self.tail is None or tail.shape[1] == 0:
            return None
        length = min(self.tail.shape[1], tail.shape[1] - 1)
        beams = tail.shape[0] // branch.active.shape[0]
        rows: Tensor | None = None
        while length and (rows := _same_rows(self.tail[:, :length], tail[:, :length], beams)) is None:
            length -= 1
        cache = prepared.model_kwargs["past_key_values"]
        cache.crop(length - self.tail.shape[1])
        if rows is not None and not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            cache.reorder_cache(rows)
        return length

    def _read(self, prepared: BranchInputs, tokens: Tensor, place: int) -> Any:
        """Read one more token [N, 1] that stands `place` tokens behind the prompt."""
        model, positions = self.generate.target.model, prepared.model_kwargs.get("position_ids")
        ahead = place + 1
        step = dict(prepared.model_kwargs)
        # [..., N, 1] of the token behind the prompt.
        step["position_ids"] = None if positions is None else positions[..., -1:] + place
        mask = prepared.attention_mask
        step["attention_mask"] = torch.nn.functional.pad(mask, (0, ahead), value=1)
        step = {name: value for name, value in step.items() if value is not None}
        inputs = model.prepare_inputs_for_generation(tokens, next_sequence_length=1, **step)
        return model(**inputs, return_dict=True)


def _same_rows(known: Tensor, wanted: Tensor, beams: int) -> Tensor | None:
    """[N] for each row of `wanted` an equal row of `known` [N, t] of the same prompt; None when one has none."""
    groups = known.view(-1, 1, beams, known.shape[1]), wanted.view(-1, beams, 1, wanted.shape[1])
    equal = (groups[0] == groups[1]).all(-1)
    if not bool(equal.any(-1).all()):
        return None
    first = equal.to(torch.int8).argmax(-1)
    return (first + torch.arange(first.shape[0], device=first.device)[:, None] * beams).flatten()


def _length(inputs: Mapping[str, Any]) -> int:
    input_ids = inputs.get("input_ids", inputs.get("inputs"))
    if not isinstance(input_ids, Tensor):
        raise ValueError("contrast_processor needs the inputs of generate with their input_ids")
    return input_ids.shape[1]
