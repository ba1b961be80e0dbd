"""The model inputs of a contrast branch, prepared the way `generate` prepares its own.

`generate` encodes images before a `custom_generate` callable is called and hands over features, positions and token
types. A branch has other tokens, so its own are made here by the model's own functions; features of unchanged images
are shared.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.contrasting import Branch
from vlm_guard.method.model_inputs import TOKEN_TYPES, image_inputs, token_types
from vlm_guard.runtime.embedded_prompt import PromptEmbedder


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchInputs:
    """One branch, ready to be read.

    Attributes:
        input_ids: [N, P] token ids of the prompt, one row per sequence or beam.
        attention_mask: [N, P], 0 for padding.
        model_kwargs: what the model's forward pass gets beside the ids; its mask is None when nothing is padded.
    """

    input_ids: Tensor
    attention_mask: Tensor
    model_kwargs: dict[str, Any]

    @property
    def length(self) -> int:
        """P, the padded length of the prompt."""
        return self.input_ids.shape[1]


def read_prompt(
    model: GenerativeModel, input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
) -> Any:
    """The output of the pass that reads a whole prompt, as `generate` runs it, into the cache in `model_kwargs`."""
    return model._prefill(input_ids, generation_config, model_kwargs)


def given_inputs(input_ids: Tensor, model_kwargs: dict[str, Any]) -> BranchInputs:
    """The branch that `generate` itself prepared."""
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    return BranchInputs(input_ids=input_ids, attention_mask=mask, model_kwargs=dict(model_kwargs))


def prepare_branch(
    model: GenerativeModel,
    branch: Branch,
    inputs: Mapping[str, Any],
    given: BranchInputs,
    generation_config: GenerationConfig,
    *,
    embedder: PromptEmbedder | None = None,
) -> BranchInputs:
    """The branch's ids, mask, positions, token types and image features.

    Args:
        model: the model.
        branch: what the method asked for, for the B prompts.
        inputs: the inputs given to `generate`.
        given: what `generate` prepared of them, with N = B * (beams or sequences per prompt) rows.
        generation_config: of this call.
        embedder: for an inner model that generates from embeddings.

    Raises:
        ValueError: the model gets its images together with the ids in a form that a changed prompt cannot share.
    """
    prompt = branch.prompt
    expand = given.input_ids.shape[0] // prompt.input_ids.shape[0]
    shared = given.model_kwargs.get("mm_encoder_outputs") if branch.images == "same" else None
    kwargs: dict[str, Any] = {"attention_mask": prompt.attention_mask}
    kwargs |= token_types(prompt, inputs)
    if embedder is not None:
        kwargs |= _embeddings(embedder, branch, inputs, given, expand)
    elif branch.images != "none":
        kwargs |= image_inputs(inputs)
        if branch.images != "same":
            kwargs |= branch.images
        if "cross_attention_mask" in kwargs:
            kwargs["cross_attention_mask"] = prompt.follow_sight(kwargs["cross_attention_mask"])
        _refuse_position_bound(kwargs, branch)
    with torch.no_grad(), kept_rope_deltas(model):
        if given.model_kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = model._prepare_position_ids_for_generation(prompt.input_ids, kwargs)
        if shared is not None:
            # What `generate` took out of its inputs went into the features.
            kwargs = {name: value for name, value in kwargs.items() if _is_kept(name, given.model_kwargs)}
        elif branch.images != "none" and embedder is None:
            kwargs = model._maybe_prepare_encoder_kwargs_for_generation(
                prompt.input_ids, kwargs, "input_ids", generation_config
            )
    input_ids, kwargs = model._expand_inputs_for_generation(
        expand_size=expand, is_encoder_decoder=False, input_ids=prompt.input_ids, **kwargs
    )
    mask = kwargs["attention_mask"]
    if shared is not None:
        kwargs["mm_encoder_outputs"] = shared
    if bool((mask == 1).all()):
        kwargs["attention_mask"] = None
    for name in ("use_cache", "logits_to_keep", "output_hidden_states"):
        if name in given.model_kwargs:
            kwargs[name] = given.model_kwargs[name]
    return BranchInputs(input_ids=input_ids, attention_mask=mask, model_kwargs=kwargs)


def _embeddings(
    embedder: PromptEmbedder, branch: Branch, inputs: Mapping[str, Any], given: BranchInputs, expand: int
) -> dict[str, Tensor]:
    """The branch's prompt as embeddings; nothing where it has no image and its ids say everything."""
    ids = branch.prompt.input_ids
    if branch.images == "none":
        return {}
    if branch.images == "same":
        rows = given.model_kwargs["inputs_embeds"][::expand]
        return {"inputs_embeds": embedder.reuse(ids, given.input_ids[::expand], rows)}
    return {"inputs_embeds": embedder.encode(ids, {**inputs, **branch.images})}


def joint_step_kwargs(first: BranchInputs, second: BranchInputs, length: int, cache: Any) -> dict[str, Any]:
    """What decoding the rows of both branches together needs, after prompts of at most `length` tokens were merged.

    The model inputs of both must be those for the token after the prompt.
    """
    pad = torch.nn.functional.pad
    masks = [pad(part.attention_mask, (length - part.length, 0)) for part in (first, second)]
    mask = pad(torch.cat(masks), (0, 1), value=1)
    kwargs: dict[str, Any] = {
        "attention_mask": None if bool((mask == 1).all()) else mask,
        "past_key_values": cache,
        "use_cache": True,
    }
    for name in ("position_ids", *TOKEN_TYPES):
        columns = [_last_column(part.model_kwargs.get(name), part.input_ids.shape[0]) for part in (first, second)]
        known = [column for column in columns if column is not None]
        if len(known) == len(columns):
            kwargs[name] = torch.cat(known, dim=-2)
    for name, value in first.model_kwargs.items():
        if name not in kwargs and not isinstance(value, Tensor) and name != "mm_encoder_outputs":
            kwargs[name] = value
    return kwargs


def _last_column(values: Tensor | None, rows: int) -> Tensor | None:
    """[..., N, 1] last entries: all that the next positions and token types are made of."""
    if values is None:
        return None
    last = values[..., -1:]
    return last.expand(*last.shape[:-2], rows, 1) if last.shape[-2] != rows else last


def _is_kept(name: str, prepared: Mapping[str, Any]) -> bool:
    return name in prepared or name in ("attention_mask", "position_ids", *TOKEN_TYPES)


def _refuse_position_bound(kwargs: Mapping[str, Any], branch: Branch) -> None:
    """Inputs that describe the images by their place in the prompt do not fit a prompt of other tokens."""
    bound = sorted({"image_patches_indices", "image_embeds_position_mask"} & kwargs.keys())
    if bound and bool(branch.prompt.changed.any()):
        raise ValueError(
            f"this model locates its images by {', '.join(bound)}, which does not fit a branch with another prompt; "
            "use a method whose branch has no image (m3id) or the same prompt (vcd)"
        )


@contextmanager
def kept_rope_deltas(model: GenerativeModel) -> Iterator[None]:
    """Models with multimodal rotary positions remember an offset of their last prompt; the branch must not be it."""
    owners = [module for module in (model, model.base_model) if "rope_deltas" in module.__dict__]
    kept = [module.rope_deltas for module in owners]
    try:
        yield
    finally:
        for module, value in zip(owners, kept):
            module.rope_deltas = value
