"""Logits read out of early layers, for methods that contrast layers instead of branches (DoLa)."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from vlm_guard.contrast.branched_model import StandIn
from vlm_guard.families.architecture import Architecture, GenerativeModel

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from vlm_guard.method.base import Method

# On a CPU a product of so many rows is about a third faster with the weights on its left (MKL, float32 and bfloat16,
# vocabularies of 32 to 150 thousand); with fewer or more rows it is not.
_WEIGHTS_LEFT = range(5, 21)
_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "embedding_norm")


class LayerContrastModel(StandIn):
    """The model, with the logits of every step combined with those of early layers.

    The last position of each early hidden state goes through the output embeddings beside the model's own: one product
    instead of two, so that their weights, a good part of what decoding reads from memory, are read once.

    Args:
        model: the model.
        architecture: its shape.
        method: combines the logits.
        layers: layers whose entering hidden state is read out; ascending.

    Raises:
        ValueError: the model has no output embeddings, or no final norm by a known name where the method wants it.
    """

    def __init__(
        self, model: GenerativeModel, architecture: Architecture, method: "Method", layers: tuple[int, ...]
    ) -> None:
        super().__init__(model)
        self.method = method
        self.layers = layers
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output embeddings, so early layers have no logits")
        self._norm = final_norm(model) if getattr(method, "final_norm", False) else None
        self._finish = after_output_embeddings(model)
        self._last: dict[int, Tensor] = {}
        self._early: Tensor | None = None
        # All layers: in some families only some of them are attention.
        modules = architecture.decoder_layers
        self._hooks = [
            modules[layer].register_forward_pre_hook(partial(self._keep, layer), with_kwargs=True) for layer in layers
        ]
        self._hooks += [head.register_forward_pre_hook(self._append), head.register_forward_hook(self._take_off)]
        # Quantised, offloaded or otherwise changed output embeddings compute as they do.
        self._plain_head = (
            head if type(head) is nn.Linear and head.bias is None and "forward" not in vars(head) else None
        )
        if self._plain_head is not None:
            head.forward = partial(_read_out, head)

    def __exit__(self, *exception: object) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        if self._plain_head is not None:
            del self._plain_head.forward
        self._last.clear()
        self._early = None

    def _keep(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._last[layer] = hidden[:, -1]

    def _append(self, head: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        """The output embeddings are given [B, Q, hidden size]: the early states become E more positions."""
        (final,) = args
        early = torch.stack([self._last[layer].to(final.device) for layer in self.layers], 1)
        early = early if self._norm is None else self._norm(early)
        return (torch.cat((final, early.to(final.dtype)), 1),)

    def _take_off(self, head: nn.Module, args: tuple, logits: Tensor) -> Tensor:
        """Of [B, Q + E, V], the model sees its own Q positions."""
        count = len(self.layers)
        self._early = logits[:, -count:]
        return logits[:, :-count]

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: "GenerationConfig",
        model_kwargs: dict,
        is_first_iteration: bool = True,
    ) -> ModelOutput:
        return self._combine(self.model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration))

    def get_compiled_call(self, compile_config: Any) -> Callable[..., Any]:
        """The loop asks for a compiled forward pass, and gets none: hooks of one generation fit no other's graph."""
        if "get_compiled_call" in vars(self.model):
            # That is a guard's, which says so.
            self.model.get_compiled_call(compile_config)
        return self.__call__

    def __call__(self, *args: Any, **model_inputs: Any) -> ModelOutput:
        """One decoding step."""
        return self._combine(self.forward(*args, **model_inputs))

    def _combine(self, output: Any) -> Any:
        """The output of the model, of whatever class that is, with its last logits contrasted."""
        if self._early is None:
            raise RuntimeError("a forward pass went by whose output embeddings were not asked")
        final = output.logits[:, -1].float()
        early = self._finish(self._early.transpose(0, 1).to(final.device).float())
        output.logits = self.method.combine_layers(final, early, self.layers)[:, None]
        return output


def _read_out(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Logits [B, Q, V] of hidden states [B, Q, D], as the module without a bias gives them, up to rounding."""
    if hidden.device.type == "cpu" and hidden.shape[:-1].numel() in _WEIGHTS_LEFT:
        return (head.weight @ hidden.flatten(0, -2).T).T.contiguous().unflatten(0, hidden.shape[:-1])
    return nn.functional.linear(hidden, head.weight)


def final_norm(model: GenerativeModel) -> nn.Module:
    """The decoder's norm before the output embeddings.

    Raises:
        ValueError: there is none by a known name.
    """
    decoder = model.get_decoder()
    owners = (decoder, getattr(decoder, "model", None))
    found = [getattr(owner, name, None) for owner in owners for name in _FINAL_NORMS]
    norm = next((module for module in found if isinstance(module, nn.Module)), None)
    if norm is None:
        raise ValueError(f"no final norm found in {type(decoder).__name__}; set final_norm=False")
    return norm


def after_output_embeddings(model: GenerativeModel) -> Callable[[Tensor], Tensor]:
    """What the model's forward pass does to its logits [..., V] after the output embeddings."""
    scale, divisor, softcap = (
        _logit_setting(model, name) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")
    )

    def finish(logits: Tensor) -> Tensor:
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    return finish


def _logit_setting(model: GenerativeModel, name: str) -> float | None:
    """What the model does to its logits after the output embeddings, if its forward pass does it.

    A vision-language model does not always repeat what its text model would do alone, so the setting of the text
    configuration counts only where the whole model's forward mentions it.
    """
    value = getattr(model.config.get_text_config(decoder=True), name, None)
    return value if value is not None and name in inspect.getsource(type(model).forward) else None
