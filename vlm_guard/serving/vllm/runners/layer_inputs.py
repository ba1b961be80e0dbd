"""What enters vLLM's decoder layers and leaves the last of them, shown to whoever looks there.

Its layers hand the residual stream on in two parts, which are added here.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionType

from vlm_guard.contrast.output_embeddings import named_norm
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
        layers = decoder_layers(self.get_model())
        for layer, attention in layers.values():
            if extract_layer_index(attention.layer_name) in served.observed_layers:
                LayerInputs.of_layer(layer, attention).attach()
        if len(layers) in served.observed_layers:
            LayerInputs.of_norm(norm_behind(self.get_model()), *layers.values()).attach()

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


def norm_behind(model: nn.Module) -> nn.Module:
    """The norm behind the last decoder layer of one of vLLM's models.

    Raises:
        ValueError: there is none by a known name.
    """
    owner = model.get_submodule(next(iter(decoder_layers(model))).rpartition(".")[0].rpartition(".")[0])
    norm = named_norm(owner)
    if norm is None:
        raise ValueError(f"{type(owner).__name__} has no norm behind its layers by a known name, which the lens needs")
    return norm


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What enters one decoder layer, or the norm behind the last one.

    Attributes:
        module: the layer or norm.
        index: of the layer; the depth for the norm.
        name: of an attention layer, by which vLLM keeps what it knows of a step.
        hidden, residual: both parts of what enters, as a name and a place among the arguments; None for no such part.
    """

    module: nn.Module
    index: int
    name: str
    hidden: tuple[str, int]
    residual: tuple[str, int] | None

    @classmethod
    def of_layer(cls, layer: nn.Module, attention: Attention) -> "LayerInputs":
        """What enters a layer.

        Args:
            layer: the layer.
            attention: its attention.

        Raises:
            ValueError: the layer is not one that takes `hidden_states`.
        """
        names = list(inspect.signature(layer.forward).parameters)
        if _HIDDEN not in names:
            raise ValueError(
                f"what looks at hidden states cannot be served inside vLLM for {type(layer).__name__}: its "
                f"forward takes {', '.join(names)}, and {_HIDDEN!r} is not among them"
            )
        hidden, residual = ((name, names.index(name)) if name in names else None for name in (_HIDDEN, _RESIDUAL))
        index = extract_layer_index(attention.layer_name)
        return cls(layer, index, attention.layer_name, hidden or (_HIDDEN, 0), residual)

    @classmethod
    def of_norm(cls, norm: nn.Module, *layers: tuple[nn.Module, Attention]) -> "LayerInputs":
        """What leaves the last layer: the norm behind it is called with both parts, or with their sum alone."""
        return cls(norm, len(layers), layers[-1][1].layer_name, ("x", 0), (_RESIDUAL, 1))

    def attach(self) -> None:
        """From now on it is seen."""
        self.module.register_forward_pre_hook(self._show, with_kwargs=True)

    def _show(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not is_forward_context_available():  # the lens reads states out with the norm, outside of a step
            return
        known = get_forward_context().attn_metadata
        metadata = known.get(self.name) if isinstance(known, dict) else None
        plan: StepPlan | None = None if metadata is None else vars(metadata).get(PLAN)
        if plan is None or not plan.observed:
            return
        hidden, residual = (_given(part, args, kwargs) for part in (self.hidden, self.residual))

        def entering(rows: slice | Tensor) -> Tensor:
            return hidden[rows] if residual is None else hidden[rows] + residual[rows]

        for found in plan.observed:
            found.show(self.index, entering)


def _given(part: tuple[str, int] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if part is None:
        return None
    name, place = part
    return args[place] if place < len(args) else kwargs.get(name)
