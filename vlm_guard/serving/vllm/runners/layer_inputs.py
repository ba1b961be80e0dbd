"""What enters vLLM's decoder layers, shown to methods that look there.

Its layers hand the residual stream on in two parts, which are added here.
"""

import functools
import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionType

from vlm_guard.serving.vllm.attention.step_plan import PLAN
from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.process import ProcessGuards
from vlm_guard.serving.vllm.start.engine import is_second_runner

if TYPE_CHECKING:
    from vlm_guard.serving.vllm.attention.step_plan import StepPlan

_DONE = "_vlm_guard_shows_layer_inputs"
_HIDDEN, _RESIDUAL = "hidden_states", "residual"


def show_layer_inputs() -> None:
    """Make vLLM's model runner put the hooks on every model that it loads; done once in a process."""
    runner = _runner_class()
    if _DONE in vars(runner):
        return
    original = runner.load_model

    @functools.wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if Declaration.of_environment() is None:  # a plain engine behind a guarded one in the same process
            return
        served = ProcessGuards.of(self.vllm_config).served
        for layer, attention in decoder_layers(self.get_model()).values():
            if extract_layer_index(attention.layer_name) in served.observed_layers:
                LayerInputs(layer, attention).attach()

    runner.load_model = load_model
    setattr(runner, _DONE, True)


def _runner_class() -> Any:
    """The class whose `load_model` this process calls."""
    if is_second_runner():
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner as SecondRunner

        return SecondRunner
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        return CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    return GPUModelRunner


def decoder_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Attention]]:
    """The decoder layers of one of vLLM's models, by their names in it, each with its attention."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, Attention) or module.attn_type != AttentionType.DECODER:
            continue
        parts = name.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdigit()]
        if numbers:
            layer = ".".join(parts[: numbers[-1] + 1])
            found[layer] = model.get_submodule(layer), module
    return found


class LayerInputs:
    """What enters one decoder layer.

    Args:
        layer: the layer. attention: its attention, by whose name vLLM keeps what it knows of a step.

    Raises:
        ValueError: the layer is not one that takes `hidden_states`.
    """

    def __init__(self, layer: nn.Module, attention: Attention) -> None:
        self._layer = layer
        self._name = attention.layer_name
        self._index = extract_layer_index(attention.layer_name)
        names = list(inspect.signature(layer.forward).parameters)
        if _HIDDEN not in names:
            raise ValueError(
                f"methods that look at hidden states cannot be served inside vLLM for {type(layer).__name__}: its "
                f"forward takes {', '.join(names)}, and {_HIDDEN!r} is not among them"
            )
        self._places = {name: names.index(name) for name in (_HIDDEN, _RESIDUAL) if name in names}

    def attach(self) -> None:
        """From now on methods see it."""
        self._layer.register_forward_pre_hook(self._show, with_kwargs=True)

    def _show(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        known = get_forward_context().attn_metadata
        metadata = known.get(self._name) if isinstance(known, dict) else None
        plan: StepPlan | None = None if metadata is None else vars(metadata).get(PLAN)
        if plan is None or not plan.observed:
            return
        hidden, residual = (self._given(name, args, kwargs) for name in (_HIDDEN, _RESIDUAL))

        def entering(rows: slice) -> Tensor:
            return hidden[rows] if residual is None else hidden[rows] + residual[rows]

        for found in plan.observed:
            found.show(self._index, entering)

    def _given(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = self._places.get(name)
        return args[place] if place is not None and place < len(args) else kwargs.get(name)
