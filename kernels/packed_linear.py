"""Linear layers on the CPU whose weights are laid out for oneDNN once, and not for every product.

Decoding multiplies one row, or a few, with every weight of a model. torch hands weights to its libraries as they lie in
memory, one output after the other. oneDNN has a layout of its own, which it reads faster, and can be given weights that
are in it already. That takes the memory of these weights a second time. How much is gained depends on the processor
and the type: `benchmark.linear.speed_up` measures it, docs/performance.md has tables.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_EXPECTED_ROWS = 16
"""For which oneDNN is asked to lay weights out. The layout serves one row and hundreds as well."""


class PackedForward:
    """Takes the place of a linear layer's `forward`: the same product, up to rounding.

    Where the packed weights do not fit what is asked (gradients, autocast, compilation, another type or device), the
    layer computes as torch would. Weights that were written to, or replaced, are packed again; a write that goes by
    their `.data` cannot be noticed (`PackedLayers.repack` is for after one). A copy of the layer packs its own.

    Args:
        layer: whose weights are packed; its class is `torch.nn.Linear`.
    """

    _packed: Tensor | None = None
    _state: tuple[int, int, torch.dtype] | None = None

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.pack()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and saved: packed weights can be neither."""
        return {"layer": self.layer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Packed at the first product; the layer may not be complete yet."""
        self.layer = state["layer"]

    @property
    def size(self) -> int:
        """Bytes of the packed weights."""
        return self.layer.weight.nbytes

    def pack(self) -> None:
        """Lay the layer's weights out, as they are now."""
        weight = self.layer.weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self._state = _state(weight)

    def __call__(self, input: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        weight, bias = self.layer.weight, self.layer.bias
        if not self._fits(input, weight):
            return linear(input, weight, bias)
        if self._state != _state(weight):
            self.pack()
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, bias, "none", [], "")
        return product

    @staticmethod
    def _fits(input: Tensor, weight: Tensor) -> bool:
        return not (
            torch.compiler.is_compiling()
            or (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad))
            or torch.is_autocast_enabled("cpu")
            or input.dtype != weight.dtype
            or input.device.type != "cpu"
            or input.numel() == 0
            or _obstacle(weight)
        )


def _state(weight: Tensor) -> tuple[int, int, torch.dtype]:
    """Changes when the weights are written to or replaced."""
    return weight.data_ptr(), weight._version, weight.dtype


def _obstacle(weight: Tensor) -> str:
    """Why weights cannot be packed; empty if they can."""
    # Asked at every product, so that the words are put together only where there is one.
    if weight.device.type != "cpu" or weight.dtype not in packable_types():
        more = ""
    elif weight.is_inference():  # these do not tell when they are written to
        more = " made in inference mode"
    elif type(weight) not in (nn.Parameter, Tensor) or type(weight.data) is not Tensor:
        more = f" of the class {type(weight.data).__name__}"
    elif not weight.numel():
        more = " without values"
    else:
        return ""
    return f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}{more}"


@dataclass(frozen=True, kw_only=True)
class PackedLayers:
    """What `pack_linear_layers` changed.

    Attributes:
        forwards: one per packed layer.
        seconds: what packing took.
    """

    forwards: tuple[PackedForward, ...]
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes that the packed weights take beside the model's own."""
        return sum(forward.size for forward in self.forwards)

    def remove(self) -> None:
        """Let the layers compute as before. Layers whose `forward` somebody else replaced since are left alone."""
        for forward in self.forwards:
            if vars(forward.layer).get("forward") is forward:
                del forward.layer.forward

    def put_back(self) -> None:
        """Let the layers take the packed weights again after `remove`."""
        for forward in self.forwards:
            vars(forward.layer).setdefault("forward", forward)

    def repack(self) -> None:
        """Lay all weights out anew, after they were written to by their `.data`."""
        for forward in self.forwards:
            forward.pack()


def pack_linear_layers(model: nn.Module) -> PackedLayers:
    """Give the linear layers of a model on the CPU packed weights. Its answers change by rounding only.

    Left as they are: layers of other classes than `torch.nn.Linear` (quantised ones), those inside an adapter of PEFT,
    which merges into their weights unseen, those whose `forward` was replaced (offloading), weights on other devices or
    of other types than float32 and bfloat16. Call it before `wrap`, and after adapters are merged.

    Args:
        model: in evaluation mode; generation runs without gradients, and with gradients layers compute as torch would.

    Raises:
        ValueError: there is nothing to pack, or torch has no oneDNN here.
    """
    if not packable_types():
        raise ValueError("weights are packed by oneDNN, which this torch was built without")
    begun = perf_counter()
    obstacles = dict(_linear_layers(model))
    forwards = []
    for layer, obstacle in obstacles.items():
        if not obstacle:
            forward = PackedForward(layer)
            vars(layer)["forward"] = forward
            forwards.append(forward)
    if not forwards:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in packable_types())
        found = ", ".join(sorted({*obstacles.values()})) or "no linear layer"
        raise ValueError(f"weights are packed for the CPU, in {names}; this model has {found}")
    return PackedLayers(forwards=tuple(forwards), seconds=perf_counter() - begun)


def _linear_layers(model: nn.Module) -> Iterator[tuple[nn.Linear, str]]:
    """The linear layers, each with why it cannot be packed."""
    # What PEFT wraps stands under this name in the module that adds to it.
    adapted = {id(part) for module in model.modules() if hasattr(module, "base_layer") for part in module.modules()}
    for layer in model.modules():
        if type(layer) is not nn.Linear:
            continue
        obstacle = _obstacle(layer.weight)
        if isinstance(vars(layer).get("forward"), PackedForward):
            obstacle = "packed weights already"
        elif "forward" in vars(layer):
            obstacle = "layers with a forward of their own (offloading?)"
        elif id(layer) in adapted:
            obstacle = "adapters"
        yield layer, obstacle


@cache
def packable_types() -> tuple[torch.dtype, ...]:
    """The types of weights that can be packed on this processor; none where torch was built without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return ()
    narrow = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if narrow else (torch.float32,)
