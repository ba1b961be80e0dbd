"""The directions of VTI, from pictures without labels.

Textual: the released code has captions of 70 pictures and the same captions with objects put in that are not there,
written by a large language model. Neither can be shipped, and a user's pictures come without any. Here a model captions
each picture itself, and the second caption is the first with a sentence put in that the model said of another picture,
in front of the last sentence: text about things that mostly are not there, in the model's own words, with the same end.

    d_l = h_l(last token | picture, caption) - h_l(last token | picture, caption with a stranger)
    direction_l = mean of d_l over pictures + the first principal component of d over all layers together

Visual: what the tower makes of a picture most of which is hidden, minus what it makes of the whole one,

    d_l = mean over random maskings of f_l(99 % of the patches in the picture's mean colour) - f_l(picture)

The released code keeps one vector for every patch; here their mean, so that it fits any number of patches.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlm_guard.method import (
    TOKEN_TYPES,
    Fact,
    StopForward,
    VisionTower,
    describe_architecture,
    describe_vision_tower,
    pack_vectors,
    run_until_stopped,
    unwrap,
)

CAPTION_TOKENS = 64
MASKED_SHARE = 0.99
TRIALS = 10
_SENTENCE = re.compile(r"[^.!?]+[.!?]?")


def measure_directions(
    model: nn.Module,
    processor: Any,
    descriptions: Sequence[Mapping[str, Any]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Fact]:
    """The facts `vti_text_direction` and, where the tower allows it, `vti_vision_direction`.

    Args:
        model: an unguarded vision-language model.
        processor: its processor.
        descriptions: inputs with a picture, batch 1, that ask for a description.
        progress: called with (finished, all) pictures.

    Raises:
        ValueError: fewer than two pictures, or all captions are the same.
    """
    if len(descriptions) < 2:
        raise ValueError("vti needs at least two pictures to measure its directions; raise --count")
    inner, tokenizer = unwrap(model), getattr(processor, "tokenizer", processor)
    captions = [_caption(inner, tokenizer, inputs) for inputs in descriptions]
    tower = _usable_tower(inner)
    text, vision = [], []
    for number, inputs in enumerate(descriptions):
        pair = caption_pair(captions, number)
        if pair is not None:
            truthful, strange = (_last_states(inner, _with_answer(inputs, tokenizer, caption)) for caption in pair)
            text.append(truthful - strange)
        if tower is not None:
            vision.append(_hidden_minus_whole(inner, tower, inputs, seed=number))
        if progress is not None:
            progress(number + 1, len(descriptions))
    if not text:
        raise ValueError("vti found no two pictures that the model describes differently; give it other pictures")
    note = f"{len(text)} of {len(descriptions)} unlabelled pictures, sha256 {_hash(descriptions)}"
    facts = {
        "vti_text_direction": Fact(
            value=pack_vectors(principal_direction(torch.stack(text))),
            source="calibrated",
            note=f"captions of the model's own with and without a sentence about another picture; {note}",
        )
    }
    if vision:
        facts["vti_vision_direction"] = Fact(
            value=pack_vectors(principal_direction(torch.stack(vision))),
            source="calibrated",
            note=f"{TRIALS} maskings of {MASKED_SHARE:.0%} of the patches against the whole picture; {note}",
        )
    return facts


def principal_direction(differences: Tensor) -> Tensor:
    """[L, D] float32, of length 1 in every layer: mean and first principal component of differences [N, L, D].

    The component is that of all layers together; its sign, which a decomposition leaves open, is the mean's.
    """
    flat = differences.double().flatten(1)
    mean = flat.mean(0)
    component = torch.zeros_like(mean)
    if len(flat) > 1:
        # The N x N matrix of inner products has the same first component, and is small.
        centred = flat - mean
        component = centred.T @ torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
        component = component / component.norm().clamp_min(1e-30)
        component = component * (1.0 if float(component @ mean) >= 0 else -1.0)
    found = (mean + component).view(differences.shape[1:])
    return (found / found.norm(dim=-1, keepdim=True).clamp_min(1e-30)).float()


def caption_pair(captions: Sequence[str], number: int) -> tuple[str, str] | None:
    """A caption, and the same with the last sentence of a following one that is not its own; None without such."""
    own = _sentences(captions[number])
    following = (captions[(number + step) % len(captions)] for step in range(1, len(captions)))
    stranger = next((item for caption in following for item in reversed(_sentences(caption)) if item not in own), None)
    if stranger is None or not own:
        return None
    return " ".join(own), " ".join([*own[:-1], stranger, own[-1]])


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE.findall(text) if part.strip()]


@torch.no_grad()
def _caption(model: Any, tokenizer: Any, inputs: Mapping[str, Any]) -> str:
    answer = model.generate(**inputs, max_new_tokens=CAPTION_TOKENS, do_sample=False)[0]
    given = inputs["input_ids"].shape[1]
    # Families that generate from embeddings return the answer alone.
    new = answer[given:] if answer.shape[0] > given else answer
    return tokenizer.decode(new, skip_special_tokens=True)


def _with_answer(inputs: Mapping[str, Any], tokenizer: Any, answer: str) -> dict[str, Any]:
    """Inputs of a pass over prompt and answer."""
    ids = inputs["input_ids"]
    new = torch.tensor([tokenizer.encode(answer, add_special_tokens=False)], dtype=ids.dtype, device=ids.device)
    longer = dict(inputs)
    longer["input_ids"] = torch.cat((ids, new), 1)
    if isinstance(inputs.get("attention_mask"), Tensor):
        longer["attention_mask"] = torch.cat((inputs["attention_mask"], torch.ones_like(new)), 1)
    for name in TOKEN_TYPES:
        if isinstance(inputs.get(name), Tensor):
            longer[name] = torch.cat((inputs[name], torch.zeros_like(new)), 1)
    return longer


def _last_states(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """[L, D] float32 states behind every decoder layer at the last position."""
    layers = describe_architecture(model).decoder_layers
    found = {}

    def keep(index: int, module: nn.Module, args: tuple, output: Any) -> None:
        found[index] = (output[0] if isinstance(output, tuple) else output)[0, -1].float().cpu()
        if index == len(layers) - 1:
            raise StopForward

    _run(model, inputs, {layer: partial(keep, index) for index, layer in enumerate(layers)})
    return torch.stack([found[index] for index in range(len(layers))])


def _usable_tower(model: Any) -> VisionTower | None:
    """The tower, where its layers see one picture after the other; None where VTI has no direction for it."""
    try:
        return describe_vision_tower(model, "vti")
    except ValueError:
        return None


@torch.no_grad()
def _hidden_minus_whole(model: Any, tower: VisionTower, inputs: Mapping[str, Any], seed: int) -> Tensor:
    """[L, C] float32, by layer of the tower, mean over patches and maskings."""
    given: list[tuple[tuple, dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given.append((args, kwargs))
        raise StopForward

    hook = tower.module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run_until_stopped(model, inputs)
    finally:
        hook.remove()
    args, kwargs = given[0]
    generator = torch.Generator().manual_seed(seed)
    whole = _tower_states(tower, args, kwargs)
    patch = int(getattr(tower.module.config, "patch_size", 14))
    hidden = torch.zeros_like(whole)
    for _ in range(TRIALS):
        masked = [_hide(item, patch, generator) for item in args]
        masked_named = {name: _hide(item, patch, generator) for name, item in kwargs.items()}
        hidden += _tower_states(tower, tuple(masked), masked_named) / TRIALS
    return hidden - whole


def _hide(value: Any, patch: int, generator: torch.Generator) -> Any:
    """Pictures [N, C, H, W] with most of their patches in their mean colour; anything else as it is."""
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        return value
    rows, columns = -(-value.shape[2] // patch), -(-value.shape[3] // patch)
    hidden = torch.rand(value.shape[0], 1, rows, columns, generator=generator) < MASKED_SHARE
    wide = hidden.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., : value.shape[2], : value.shape[3]]
    return torch.where(wide.to(value.device), value.mean((2, 3), keepdim=True), value)


def _tower_states(tower: VisionTower, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """[L, C] float32 behind every layer of the tower, mean over pictures and tokens."""
    found = {}

    def keep(index: int, module: nn.Module, arguments: tuple, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        found[index] = hidden.float().flatten(0, -2).mean(0).cpu()

    with ExitStack() as stack:
        for index, layer in enumerate(tower.layers):
            stack.callback(layer.register_forward_hook(partial(keep, index)).remove)
        tower.module.forward(*args, **kwargs)
    return torch.stack([found[index] for index in range(tower.depth)])


def _run(model: Any, inputs: Mapping[str, Any], hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook).remove)
        run_until_stopped(model, inputs)


def _hash(descriptions: Sequence[Mapping[str, Any]]) -> str:
    """The beginning of a hash of the pictures as the model is given them."""
    digest = hashlib.sha256()
    for inputs in descriptions:
        for name in sorted(inputs):
            value = inputs[name]
            if isinstance(value, Tensor) and value.is_floating_point():
                digest.update(value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
