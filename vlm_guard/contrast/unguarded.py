"""Contrast decoding for a model that is not guarded: a `custom_generate` callable, and a `LogitsProcessor`."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import LogitsProcessor

from vlm_guard.contrast.branched_generate import ContrastGenerate
from vlm_guard.contrast.logits_processor import ContrastLogitsProcessor
from vlm_guard.families.architecture import GenerativeModel, describe_architecture, unwrap
from vlm_guard.families.profiles import find_profile
from vlm_guard.method.base import Method
from vlm_guard.method.hooks import acts_before_logits
from vlm_guard.method.target import GuardTarget


def contrast_generate(
    method: Method, model: GenerativeModel, processor: Any, inputs: Mapping[str, Any]
) -> Callable[..., Any]:
    """A `custom_generate` callable for a model that is not guarded.

        model.generate(**inputs, custom_generate=contrast_generate(VCD(), model, processor, inputs))

    Args:
        method: a contrast method that edits no attention.
        model: the model that `generate` is called on.
        processor: its processor, or None for methods that need none.
        inputs: the same inputs that `generate` gets (it encodes images before the callable sees them).

    Raises:
        ValueError: the method is not a contrast method, or it edits attention (then use `wrap`).
    """
    return ContrastGenerate(_bare_target(method, model, processor), method, inputs)


def contrast_processor(
    method: Method, model: GenerativeModel, processor: Any, inputs: Mapping[str, Any]
) -> LogitsProcessor:
    """A `LogitsProcessor` whose branch follows greedy search, sampling, beams and prompt lookup.

        generate(**inputs, logits_processor=LogitsProcessorList([contrast_processor(VCD(), model, processor, inputs)]))

    Its branch is a second forward pass per token; a guarded model and `contrast_generate` share one pass.

    Raises:
        ValueError: as `contrast_generate`.
    """
    return ContrastLogitsProcessor(_bare_target(method, model, processor), method, inputs)


def _bare_target(method: Method, model: GenerativeModel, processor: Any) -> GuardTarget:
    """What a method may look at, for a model that is not guarded."""
    if not method.contrasts():
        raise ValueError(f"{method.name} contrasts no logits with these options; use wrap(model, ...) for it")
    if method.edits_attention():
        raise ValueError(f"{method.name} edits attention as well, which needs a guard: wrap(model, processor, ...)")
    if acts_before_logits(method):
        raise ValueError(
            f"{method.name} acts inside the model as well, which needs a guard: wrap(model, processor, ...)"
        )
    if "processor" in method.needs and processor is None:
        raise ValueError(f"{method.name} needs the model's processor")
    inner = unwrap(model)
    return GuardTarget(
        model=inner,
        processor=processor,
        architecture=describe_architecture(inner),
        profile=find_profile(inner.config),
    )
