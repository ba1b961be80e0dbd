"""The second branch of a request as a request of its own: other token ids, other pictures, or other attention."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_guard.method.base import Sign
from vlm_guard.method.branch_prompt import GivenPrompt
from vlm_guard.method.contrasting import Branch, ContrastCall, padding_id
from vlm_guard.serving.vllm.served_guards import ServedGuard

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadow:
    """What the second branch of a request reads.

    Attributes:
        ids: its prompt.
        features: its pictures, each with its place in `ids`.
        sign: which branch it is; the request is the other.
    """

    ids: list[int]
    features: "list[MultiModalFeatureSpec]"
    sign: Sign


def make_shadow(served: ServedGuard, ids: Sequence[int], features: "Sequence[MultiModalFeatureSpec]") -> Shadow | None:
    """The second branch of a prompt.

    Args:
        served: the guard with a method that contrasts logits.
        ids: the prompt, its placeholders expanded.
        features: its pictures.

    Returns:
        None where the method contrasts nothing for this prompt (no picture, nothing to rewrite).

    Raises:
        ValueError: the branch cannot be made of this prompt; the message says why.
    """
    bound = served.contrast
    if bound is None:
        return None
    target = served.guard.target
    given = torch.tensor([list(ids)])
    prompt = GivenPrompt(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        visual_token_ids=served.visual_token_ids,
        pad_id=padding_id(target.model, target.processor, served.visual_token_ids),
    )
    branches = [_branch(bound, prompt, target, inputs) for inputs in [_inputs(part) for part in features] or [{}]]
    branch = branches[0]
    if branch is None or not bool(branch.active[0]):
        return None
    changed = branch.prompt.input_ids[0][branch.prompt.attention_mask[0].bool()].tolist()
    source = branch.prompt.source[0][branch.prompt.attention_mask[0].bool()].tolist()
    if branch.images == "none":
        return Shadow(ids=changed, features=[], sign=branch.sign)
    moved = [_moved(part, source) for part in features]
    if branch.images != "same":
        tag = f"vlm_guard {bound.method.describe()}"
        moved = [
            _replaced(part, own.images, tag)
            for part, own in zip(moved, branches)
            if own is not None and not isinstance(own.images, str)
        ]
    return Shadow(ids=changed, features=moved, sign=branch.sign)


def _branch(bound: Any, prompt: GivenPrompt, target: Any, inputs: dict[str, Any]) -> Branch | None:
    call = ContrastCall(
        prompt=prompt, inputs=inputs, model=target.model, processor=target.processor, prepared=bound.prepared
    )
    return bound.method.contrast_branch(call)


def _inputs(feature: "MultiModalFeatureSpec") -> dict[str, Any]:
    """The model inputs of one picture, as a processor gives them for a prompt with this picture alone."""
    if feature.data is None:
        return {}
    return {name: _as_given(element) for name, element in feature.data.items()}


def _as_given(element: Any) -> Any:
    """A field as the processor gave it: what vLLM has cut into items gets its first dimension back."""
    data = element.data
    batched = type(element.field).__name__ == "MultiModalBatchedField"
    return data[None] if isinstance(data, Tensor) and batched else data


def _moved(feature: "MultiModalFeatureSpec", source: Sequence[int]) -> "MultiModalFeatureSpec":
    """The picture at its place in the changed prompt.

    Raises:
        ValueError: its placeholders were cut apart.
    """
    place = feature.mm_position
    wanted = range(place.offset, place.offset + place.length)
    try:
        start = source.index(place.offset)
    except ValueError:
        start = -1
    if start < 0 or list(source[start : start + place.length]) != list(wanted):
        raise ValueError("the second branch's prompt cuts the placeholders of a picture apart")
    return dataclasses.replace(feature, mm_position=dataclasses.replace(place, offset=start))


def _replaced(feature: "MultiModalFeatureSpec", images: Any, tag: str) -> "MultiModalFeatureSpec":
    """The picture with other inputs, under an identity of its own: encoder and prefix caches go by it."""
    if feature.data is None:
        raise ValueError("the picture's inputs are not there")
    data = type(feature.data)(feature.data)
    for name, value in images.items():
        element = data[name]
        given = value[0] if isinstance(element.data, Tensor) and value.dim() == element.data.dim() + 1 else value
        changed = type(element).__new__(type(element))
        vars(changed).update(vars(element))
        changed.data = given.to(element.data.dtype)
        data[name] = changed
    identity = f"{feature.identifier} {tag}"
    return dataclasses.replace(feature, data=data, identifier=identity, mm_hash=identity)
