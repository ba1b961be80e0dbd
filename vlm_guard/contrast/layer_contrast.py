"""Logits read out of other states of the same pass, for methods that contrast these instead of branches (DoLa)."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from vlm_guard.contrast.branched_model import StandIn
from vlm_guard.contrast.read_out import ReadOut
from vlm_guard.families.architecture import Architecture, GenerativeModel
from vlm_guard.method.gate import Gate

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from vlm_guard.guard import Guard
    from vlm_guard.method.base import Method
    from vlm_guard.method.read_out_call import ReadOutCall

# On a CPU a float32 product of so many rows is about a third faster with the weights on its left (MKL, vocabularies of
# 32 to 150 thousand); with fewer or more rows it is not. In bfloat16 it is faster on some processors and slower on
# others, so it is left alone.
_WEIGHTS_LEFT = range(5, 21)


class LayerContrastModel(StandIn):
    """The model, with the logits of every step combined with those of early layers, or of other states.

    The last position of each early hidden state (or what else the method reads out) goes through the output embeddings
    beside the model's own: one product instead of two, so that their weights, a good part of what decoding reads from
    memory, are read once.

    Args:
        model: the model.
        architecture: its shape.
        method: combines the logits.
        layers: layers whose entering hidden state is read out; ascending.
        guard: the guard of the model, whose running pass the method is told; None for a bare model.

    Raises:
        ValueError: the model has no output embeddings, or no final norm by a known name where the method wants it.
    """

    def __init__(
        self,
        model: GenerativeModel,
        architecture: Architecture,
        method: "Method",
        layers: tuple[int, ...],
        *,
        guard: "Guard | None" = None,
    ) -> None:
        super().__init__(model)
        self.layers = layers
        self.guard = guard
        self._read_out = ReadOut(model, architecture, method)
        head = self._read_out.head
        self._last: dict[int, Tensor] = {}
        self._read: tuple[ReadOutCall, Tensor] | None = None
        self._call: ReadOutCall | None = None
        self._own = 0
        # All layers: in some families only some of them are attention.
        modules = architecture.decoder_layers
        self._hooks = [
            modules[layer].register_forward_pre_hook(partial(self._keep, layer), with_kwargs=True) for layer in layers
        ]
        self._head = head
        # Behind a gate most steps need no early logits, and their own must be exactly those of the plain model.
        self._gate = Gate.read(method.gate)
        if self._gate is None:
            self._hooks += [head.register_forward_pre_hook(self._append), head.register_forward_hook(self._take_off)]
        else:
            self._hooks.append(head.register_forward_pre_hook(self._look))
        # Quantised, offloaded or otherwise changed output embeddings compute as they do.
        self._plain_head: nn.Linear | None = None
        if self._gate is None and type(head) is nn.Linear and head.bias is None and "forward" not in vars(head):
            self._plain_head = head
            head.forward = partial(_read_out, head)

    def __exit__(self, *exception: object) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        if self._plain_head is not None:
            del self._plain_head.forward
        self._last.clear()
        self._read = self._call = None

    def _keep(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._last[layer] = hidden[:, -1]

    def _append(self, head: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """The output embeddings are given [B, Q, hidden size]: what is read out becomes E more positions."""
        (final,) = args
        self._call = self._describe(final)
        rows = self._read_out.rows(self._call)
        self._own = final.shape[1]
        return (torch.cat((final, rows), 1),) if rows.shape[1] else None

    def _look(self, head: nn.Module, args: tuple[Tensor]) -> None:
        """The output embeddings are asked, and get what they are given."""
        self._call = self._describe(args[0])

    def _describe(self, final: Tensor) -> "ReadOutCall":
        """What the method is handed of a pass whose last states are `final` [B, Q, hidden size]."""
        running = None if self.guard is None else self.guard.reading.current
        state = None if running is None else running.state
        return self._read_out.call(final[:, -1], self._last, -1, state)

    def _take_off(self, head: nn.Module, args: tuple[Tensor], logits: Tensor) -> Tensor:
        """Of [B, Q + E, V], the model sees its own Q positions."""
        if self._call is None:
            raise RuntimeError("the output embeddings were asked without their hook in front")
        count = args[0].shape[1] - self._own
        self._read = self._call, logits[:, self._own :]
        return logits[:, : self._own] if count else logits

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
        if self._gate is not None:
            return self._combine_open(output, self._gate)
        if self._read is None:
            raise RuntimeError("a forward pass went by whose output embeddings were not asked")
        call, read = self._read
        final = output.logits[:, -1].float()
        extra = self._read_out.finish(read.transpose(0, 1).to(final.device).float())
        output.logits = self._read_out.combine(call, final, extra)[:, None]
        return output

    def _combine_open(self, output: Any, gate: Gate) -> Any:
        """The same in the rows whose gate is open; the others keep their logits, bit for bit."""
        final, call = output.logits[:, -1].float(), self._call
        if call is None:
            raise RuntimeError("a forward pass went by whose output embeddings were not asked")
        open_ = gate.is_open(final)
        if bool(open_.any()):
            rows = self._read_out.rows(call)
            read = self._head(rows) if rows.shape[1] else final.new_zeros(final.shape[0], 0, final.shape[1])
            extra = self._read_out.finish(read.transpose(0, 1).to(final.device).float())
            final = torch.where(open_[:, None], self._read_out.combine(call, final, extra), final)
        output.logits = final[:, None]
        return output


def _read_out(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Logits [B, Q, V] of hidden states [B, Q, D], as the module without a bias gives them, up to rounding."""
    on_left = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    if on_left and hidden.shape[:-1].numel() in _WEIGHTS_LEFT:
        return (head.weight @ hidden.flatten(0, -2).T).T.contiguous().unflatten(0, hidden.shape[:-1])
    return nn.functional.linear(hidden, head.weight)
