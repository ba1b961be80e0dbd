"""What a method needs of a model before it is wrapped, and what it is told where the model lacks it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_guard.families.architecture import Architecture
from vlm_guard.families.layers import layer_ranges
from vlm_guard.method.hooks import acts_before_logits, takes_gate

if TYPE_CHECKING:
    from vlm_guard.method.base import Method
    from vlm_guard.method.target import GuardTarget


def refuse_unmet_needs(methods: "Sequence[Method]", target: "GuardTarget") -> None:
    """Refuse methods without their processor, and those that mean nothing, or cannot see, in this model's layers.

    Raises:
        ValueError: with the method and the reason.
    """
    for method in methods:
        if "processor" in method.needs and target.processor is None:
            raise ValueError(f"{method.name} needs the model's processor: wrap(model, processor, {method.name!r})")
        if target.architecture.entry.cross_attention and acts_before_logits(method) and method.cross_attention:
            raise ValueError(
                f"{method.name} means nothing for {target.architecture.model_type}, which reads its images in "
                f"cross-attention layers: {method.cross_attention}; vhr and the contrast methods work there"
            )
        _refuse_unseen_rows(method, target)
        if method.gate and not takes_gate(method):
            if method.overrides("search"):
                why = "decides over many steps at once, by a search of its own, so a gate has no single step to open"
            else:
                why = "does nothing at single steps of an answer, so a gate has none to choose from"
            raise ValueError(f"{method.name} {why}; leave out gate={method.gate!r}")


def _refuse_unseen_rows(method: "Method", target: "GuardTarget") -> None:
    blind = {layer.index for layer in target.architecture.layers if layer.last_rows_only}
    if not blind:
        return
    wanted = blind.intersection(method.prompt_layers(target))
    if wanted:
        seeing = [layer.index for layer in target.architecture.layers if not layer.last_rows_only]
        raise ValueError(
            f"{method.name} looks at many rows of a prompt in layers {layer_ranges(sorted(wanted))}, and of these this "
            f"{target.architecture.model_type} model computes only the last row, as they share the keys and values of "
            f"earlier layers; choose layers out of {layer_ranges(seeing)}"
        )


def refuse_trace(architecture: Architecture) -> None:
    """Refuse to record attention where its keys are not the tokens of the prompt.

    Raises:
        ValueError: the family reads images in cross-attention layers.
    """
    if architecture.entry.cross_attention:
        raise ValueError(
            f"{architecture.model_type} reads its images in cross-attention layers: the keys of these are patches of "
            "tiles, those of the others no visual tokens, so there is no share of attention on the image to trace"
        )
