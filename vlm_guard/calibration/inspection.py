"""What can be said about a model before anything is generated."""

from typing import Any

from torch import nn

from vlm_guard.families.architecture import describe_architecture, unwrap
from vlm_guard.families.layers import layer_ranges
from vlm_guard.families.profiles import find_profile, short_value
from vlm_guard.guard import Guard
from vlm_guard.method.model_choice import choice_of
from vlm_guard.method.registry import method_class, method_names


def inspect_model(model: nn.Module, processor: Any) -> dict[str, Any]:
    """Shape, profile and, for every method with its default options, whether the model takes it and why not.

    Raises:
        ValueError: the model cannot be guarded at all.
    """
    inner = unwrap(model)
    architecture = describe_architecture(inner)
    profile = find_profile(inner.config)
    choice = choice_of(architecture, profile)
    return {
        "model": {
            "class": type(inner).__name__,
            "model_type": architecture.model_type,
            "parameters": sum(parameter.numel() for parameter in inner.parameters()),
            "decoder layers": architecture.depth,
            "editable attention layers": len(architecture.layers),
            "hidden size": architecture.hidden_size,
            "query heads": architecture.heads,
            "visual token ids": list(architecture.visual_token_ids),
            "auto stands for": f"{choice.text} ({choice.reason})",
        },
        "profile": {"name": "none; run 'vlm-guard calibrate' for methods that need one"}
        if profile is None
        else {"name": profile.name}
        | {name: f"{short_value(fact.value)} ({fact.source}: {fact.note})" for name, fact in profile.facts.items()},
        "methods": [_verdict(model, processor, name) for name in method_names()],
    }


def _verdict(model: nn.Module, processor: Any, name: str) -> dict[str, str]:
    try:
        guard = Guard(model, processor, [method_class(name)()])
    except (ValueError, TypeError) as error:
        return {"method": name, "layers": "-", "verdict": str(error)}
    layers = sorted(guard.methods[0].layers)
    chosen = guard.methods[0].method
    idle = chosen.why_idle(guard.target)
    verdict = f"ready, but it changes nothing here: {idle}" if idle else "ready"
    return {"method": name, "layers": layer_ranges(layers) if chosen.edits_attention() else "-", "verdict": verdict}
