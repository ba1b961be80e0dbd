"""Calls that a guarded model refuses, because they would silently give something else than the guarded answer."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.base import Method
from vlm_guard.runtime.installation import put_on

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

_PAGED = (
    "a guarded model does not do continuous batching (generate_batch, init_continuous_batching, "
    "cache_implementation='paged'): requests come and go inside one row of a forward pass, without their images; "
    "use generate with a padded batch, or remove the guard"
)


def refuse_forward(guard: "Guard", module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Refuse a forward pass whose result the guard cannot answer for.

    Raises:
        ValueError: it is part of continuous batching, it would return attention weights as they were before the edit,
            or the model trains in a way that attention edits do not follow.
    """
    if kwargs.get("cache") is not None:
        raise ValueError(_PAGED)
    asked = kwargs.get("output_attentions")
    if not (asked or module.training) or not any(bound.method.edits_attention() for bound in guard.methods):
        return
    if asked:
        raise ValueError(
            "output_attentions would return the weights before the edit; use guard.trace(...) to record attention "
            "as it is used, or remove the guard"
        )
    if module.training:
        _refuse_training(guard, module)


def _refuse_training(guard: "Guard", module: nn.Module) -> None:
    """Training mode is fine where it computes what evaluation mode does."""
    if getattr(module, "is_activation_checkpointing", False):
        raise ValueError(
            "the model is in training mode with gradient checkpointing, which runs layers again in the backward pass, "
            "when the guard may hold another prompt; call model.gradient_checkpointing_disable() or model.eval()"
        )
    if any(_dropout(entry.attention) > 0 for entry in guard.target.architecture.layers):
        raise ValueError(
            "the model is in training mode with attention dropout, which edited rows would not have; "
            "call model.eval(), or set the dropout to 0"
        )


def _dropout(attention: nn.Module) -> float:
    """The attention dropout of a module in training mode, a number or a module of its own in transformers' models."""
    rate = getattr(attention, "attention_dropout", getattr(attention, "dropout", 0.0))
    return rate.p if isinstance(rate, nn.Dropout) else float(rate)


def refuse_continuous_batching(model: GenerativeModel) -> Callable[[], Any]:
    """Make the model refuse continuous batching; returns what undoes that.

    All its entry points (`generate_batch`, `continuous_batching_context_manager`, a paged cache) come to one method.
    """

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError(_PAGED)

    # On the instance, as for `generate`: the class stays untouched.
    return put_on(model, "init_continuous_batching", refuse)


def refuse_class_generate(guard: "Guard", model: GenerativeModel) -> Callable[[], Any]:
    """Refuse `type(model).generate(model, ...)`, which goes past the guarded `generate`; returns what undoes that."""
    original = model._prepare_generation_config

    def prepare(*args: Any, **kwargs: Any) -> Any:
        # Asked for by every `generate`. Another thread's call holds the reading, so this waits for it.
        with guard.reading.holding():
            if not (guard.reading.is_generating or guard.reading.is_paused):
                raise ValueError(
                    f"{type(model).__name__}.generate was called past the guarded model's own generate, which would "
                    "answer without the guard's prompt; call model.generate(...) of the model that was wrapped"
                )
        return original(*args, **kwargs)

    return put_on(model, "_prepare_generation_config", prepare)


def refuse_method_as_processor(processor: Any) -> None:
    """Refuse a method where `wrap` takes the processor; it would guard with the default method instead.

    Raises:
        TypeError: it is a text or a method.
    """
    if isinstance(processor, str | Method):
        given = repr(processor) if isinstance(processor, str) else f"the method {processor.name!r}"
        raise TypeError(
            f"the second argument is the model's processor, given {given}; a method is the third: "
            "wrap(model, processor, 'var'), or wrap(model, None, 'pai') where a method needs no processor"
        )


def refuse_removed_guard(guard: "Guard") -> None:
    """Refuse to answer through a guard that was removed.

    Raises:
        ValueError: the guard is not on its model.
    """
    if not guard.is_attached:
        raise ValueError(
            "this guard was removed, so nothing is guarded; call model.generate(...) for the plain model, "
            "guard.attach() to guard it again, or wrap(...) for another method"
        )
