"""A decoder's forward pass taken apart into its layers, each run when somebody asks for it.

So two passes can go through the layers of one model side by side, in one thread: the second one's layers are run from
inside the first. What the decoder does before its layers (embeddings, masks, positions) is done by its own forward, in
a pass whose layers are stand-ins that note what they are given and hand the hidden states on as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlm_guard.method import StopForward, run_until_stopped

_HIDDEN = "hidden_states"


class _NotChained(Exception):
    """A layer was given something other than what the layer before it returned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """One layer with what it is given beside the hidden states.

    Attributes:
        layer: the layer.
        index: its place in the decoder.
        args: the positional arguments behind the hidden states. kwargs: the others.
    """

    layer: nn.Module
    index: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, hidden: Tensor) -> Tensor:
        """The hidden states behind the layer. Hooks on the layer as a whole do not run, those inside it do."""
        output = self.layer.forward(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


class LayerByLayer:
    """A forward pass without a cache that stands between two layers.

    Args:
        model: the model.
        inputs: of its forward pass.
        layers: the decoder's layers, in their order.
        last: the last layer that will be asked for.

    Raises:
        ValueError: the decoder does more between its layers than hand the hidden states on.
    """

    def __init__(
        self, model: PreTrainedModel, inputs: Mapping[str, Any], layers: Sequence[nn.Module], last: int
    ) -> None:
        # Decoders take from a layer either a tensor or the first entry of a tuple.
        for returned in (lambda hidden: hidden, lambda hidden: (hidden,)):
            calls: list[LayerCall] = []
            handed: list[Tensor] = []
            note = partial(_note, calls=calls, handed=handed, returned=returned, last=last)
            try:
                with _stand_ins(layers, note):
                    run_until_stopped(model, inputs)
                break
            except _NotChained:
                continue
        else:
            raise ValueError(
                f"the decoder of {type(model).__name__} does something between its layers, so they cannot be run apart"
            )
        self._waiting = calls
        self._hidden = handed[0]

    def advance(self, index: int) -> bool:
        """Run the layers up to and with `index`.

        Returns:
            Whether that layer is among those this pass goes through.
        """
        call = None
        while self._waiting and self._waiting[0].index <= index:
            call = self._waiting.pop(0)
            with torch.no_grad():
                self._hidden = call(self._hidden)
        return call is not None and call.index == index


def _note(
    layer: nn.Module,
    index: int,
    *args: Any,
    calls: list[LayerCall],
    handed: list[Tensor],
    returned: Any,
    last: int,
    **kwargs: Any,
) -> Any:
    """In place of a layer's forward: keep what it is given, and hand the hidden states on."""
    hidden, args = (kwargs.pop(_HIDDEN), args) if _HIDDEN in kwargs else (args[0], args[1:])
    if handed and hidden is not handed[-1]:
        raise _NotChained
    handed.append(hidden)
    calls.append(LayerCall(layer=layer, index=index, args=args, kwargs=kwargs))
    if index == last:
        raise StopForward
    return returned(hidden)


@contextmanager
def _stand_ins(layers: Sequence[nn.Module], note: Any) -> Iterator[None]:
    """Layers whose forward is `note`; wrappers of their own forward (accelerate's) are put back afterwards."""
    kept = [vars(layer).get("forward") for layer in layers]
    try:
        for index, layer in enumerate(layers):
            layer.forward = partial(note, layer, index)
        yield
    finally:
        for layer, forward in zip(layers, kept):
            del layer.forward
            if forward is not None:
                layer.forward = forward
