"""The second branch of a request as a request of its own: other token ids, other pictures, or other attention."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_guard.method.base import Sign
from vlm_guard.method.branch_prompt import GivenPrompt, image_markers
from vlm_guard.method.contrasting import ContrastCall, padding_id
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
    prompt = _given(served, ids)
    inputs, counts = joint_inputs(features)
    call = ContrastCall(
        prompt=prompt, inputs=inputs, model=target.model, processor=target.processor, prepared=bound.prepared
    )
    branch = bound.method.contrast_branch(call)
    if branch is None or not bool(branch.active[0]):
        return None
    real = branch.prompt.attention_mask[0].bool()
    changed, source = branch.prompt.input_ids[0][real].tolist(), branch.prompt.source[0][real].tolist()
    if branch.images == "none":
        return Shadow(ids=changed, features=[], sign=branch.sign)
    moved = [_moved(part, source) for part in features]
    if not isinstance(branch.images, str):
        parts = {name: value.split(counts[name]) for name, value in branch.images.items()}
        tag = f"vlm_guard {bound.method.describe()}"
        moved = [
            _replaced(part, {name: values[number] for name, values in parts.items()}, f"{number} {tag}")
            for number, part in enumerate(moved)
        ]
    return Shadow(ids=changed, features=moved, sign=branch.sign)


def make_text_stream(served: ServedGuard, ids: Sequence[int]) -> Shadow | None:
    """The prompt without its pictures and their markers; None where it has no picture.

    Args:
        served: the guard with a method that compares both.
        ids: the prompt, its placeholders expanded.

    Raises:
        ValueError: nothing is left of it.
    """
    target = served.guard.target
    given = _given(served, ids)
    if not bool(given.has_image[0]):
        return None
    text = given.without_images(image_markers(target.model, target.processor))
    real = text.attention_mask[0].bool()
    return Shadow(ids=text.input_ids[0][real].tolist(), features=[], sign="positive")


def _given(served: ServedGuard, ids: Sequence[int]) -> GivenPrompt:
    target = served.guard.target
    given = torch.tensor([list(ids)])
    return GivenPrompt(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        visual_token_ids=served.visual_token_ids,
        pad_id=padding_id(target.model, target.processor, served.visual_token_ids),
    )


def joint_inputs(features: "Sequence[MultiModalFeatureSpec]") -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The model inputs of all pictures, as a processor gives them, and how many entries of each are every picture's.

    Inputs of pictures whose shapes differ are left out; a method that needs them says that it was given none.
    """
    known = [feature.data for feature in features if feature.data is not None]
    if not known or len(known) < len(features):
        return {}, {}
    inputs, counts = {}, {}
    for name in known[0]:
        values = [_as_given(data[name]) for data in known if name in data]
        shapes = {value.shape[1:] for value in values if isinstance(value, Tensor)}
        if len(values) == len(known) and all(isinstance(value, Tensor) for value in values) and len(shapes) == 1:
            inputs[name], counts[name] = torch.cat(values), [value.shape[0] for value in values]
    return inputs, counts


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


def _replaced(feature: "MultiModalFeatureSpec", images: Mapping[str, Tensor], tag: str) -> "MultiModalFeatureSpec":
    """The picture with other inputs, under an identity of its own: encoder and prefix caches go by it."""
    if feature.data is None:
        raise ValueError("the picture's inputs are not there")
    data = type(feature.data)(feature.data)
    for name, value in images.items():
        element = data[name]
        given = value[0] if isinstance(element.data, Tensor) and value.dim() == element.data.dim() + 1 else value
        changed = copy.copy(element)
        changed.data = given.to(element.data.dtype)
        data[name] = changed
    identity = f"{feature.identifier} {tag}"
    return dataclasses.replace(feature, data=data, identifier=identity, mm_hash=identity)
