"""Compiled decode steps of a guarded model: one graph for all of them, and nothing in it that changes in Python.

transformers compiles the decode step when the cache is static. What a guard does in Python (following the prompt,
asking methods for their edits) stays outside of that graph: the hooks on the guarded model run as always, and only
the model's `forward` inside them is replaced by the compiled one. Before the first step every method is asked for its
edit of every layer; to the graph these are tensors of fixed shapes, so that neither the next token nor the next prompt
compiles anything anew. Whatever is no such step (a prompt, a traced call, a growing cache) runs uncompiled.
"""

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import CompileConfig, DynamicCache
from transformers.cache_utils import Cache, StaticLayer

from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.attention_calls import SLOT
from vlm_guard.runtime.decode_step import DecodeStep, StepSequence
from vlm_guard.runtime.graph_break import accepted
from vlm_guard.runtime.installation import put_on
from vlm_guard.runtime.reading import RunningPass

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

Forward = Callable[..., Any]
_ABSENT = object()
# Graphs outlive the guard they were made for, but not their model.
_GRAPHS: "weakref.WeakKeyDictionary[GenerativeModel, dict[str, Forward]]" = weakref.WeakKeyDictionary()


class CompiledDecode:
    """Runs the decode steps of one guard's model through a compiled `forward`, where its methods allow it.

    Args:
        guard: the guard.

    Attributes:
        asked: whether the running generation was told to compile its steps.
    """

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard
        self.asked = False
        self._original: Forward | None = None
        self._own_graphs: dict[str, Forward] = {}
        self._sequences: dict[int, StepSequence] = {}
        self._warned: set[str] = set()

    def install(self, model: GenerativeModel) -> list[Callable[[], Any]]:
        """Take over the model's compiled calls; returns what undoes it."""
        stock, given = model.get_compiled_call, model.__dict__.get("forward", _ABSENT)
        undo = [put_on(model, "get_compiled_call", functools.partial(self._get_compiled_call, model, stock))]
        original = uncompiled(given)
        self._original = original or model.forward
        if original is not None:
            undo.append(put_on(model, "forward", self._dispatching(given, original)))
        return undo

    def forget(self) -> None:
        """The model is given back."""
        self._own_graphs.clear()
        self._original = None
        self.end()

    def end(self) -> None:
        """The generation is over."""
        self.asked = False
        self._sequences.clear()

    def follows(self, running: RunningPass, cache: Any, input_ids: Tensor) -> bool:
        """Whether the running pass is the next step of a known sequence, so that nothing has to be read.

        Asking a static cache for its length waits for the device; counting does not.
        """
        sequence = self._sequences.get(id(cache))
        if sequence is None or input_ids.shape[1] != 1:
            return False
        reading = self.guard.reading
        if not sequence.continues(cache, reading.caches.get(cache), reading.joint(cache)):
            return False
        offset = sequence.offset + 1
        sequence.offset = offset
        running.state, running.groups, running.findings = sequence.state, sequence.groups, reading.findings
        reading.last = sequence.state
        if sequence.groups is None:
            sequence.state.continue_with(offset)
        else:
            for group in sequence.groups:
                group.state.continue_with(offset - group.shift)
        return True

    # -- what transformers calls ------------------------------------------------------------------------------

    def _get_compiled_call(self, model: GenerativeModel, stock: Forward, compile_config: Any = None) -> Forward:
        reason = self._why_not()
        if reason is not None:
            self._warn(reason)
            return model.__call__
        config = compile_config or getattr(model, "_default_compile_config", CompileConfig)()
        if not _compiles(model, stock, config):
            return model.__call__
        self.asked = True
        return functools.partial(self._call, model, self._compiled_forward(model, config))

    def _compiled_forward(self, model: GenerativeModel, config: Any) -> Forward:
        """The model's `forward`, compiled; the next guard of the model with the same methods gets the same one."""
        methods = [bound.method.describe() for bound in self.guard.methods]
        key = f"{methods} {self.guard.attention_backend} {config.to_dict()}"
        original = self._original
        if original is None:
            raise RuntimeError("the guard was removed while a generation was being compiled; call generate again")
        function = getattr(original, "__func__", None)
        shared = function is not None and getattr(original, "__self__", None) is model
        graphs = _GRAPHS.setdefault(model, {}) if shared else self._own_graphs
        if key not in graphs:
            # Not the bound method, which would keep the model alive.
            graphs[key] = _compile(original if function is None or not shared else function, config)
        return functools.partial(graphs[key], model) if shared else graphs[key]

    def _call(self, model: GenerativeModel, compiled: Forward, *args: Any, **kwargs: Any) -> Any:
        """The model with its hooks, around the compiled `forward`."""
        kept = model.__dict__.get("forward", _ABSENT)
        model.__dict__["forward"] = functools.partial(self._forward, compiled, model.forward)
        try:
            return model(*args, **kwargs)
        finally:
            if kept is _ABSENT:
                del model.__dict__["forward"]
            else:
                model.__dict__["forward"] = kept

    def _dispatching(self, compiled: Forward, original: Forward) -> Forward:
        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._forward(compiled, original, *args, **kwargs)

        return forward

    def _forward(self, compiled: Forward, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """One forward pass, inside the model's hooks: compiled where it is a decode step."""
        reading = self.guard.reading
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        step = self._step(kwargs.get("past_key_values"), input_ids)
        if step is None:
            return original(*args, **kwargs)
        reading.step = step
        try:
            return compiled(*args, **kwargs)
        finally:
            reading.step = None

    def _step(self, cache: Any, input_ids: Any) -> DecodeStep | None:
        """The step that this forward pass is, or None when it has to run uncompiled."""
        running, tracer = self.guard.reading.current, self.guard.reading.tracer
        one_token = isinstance(input_ids, Tensor) and input_ids.shape[1:] == (1,)
        if running is None or running.state is None or not one_token or tracer is not None:
            return None
        state, groups = running.state, running.groups
        if state.reading or state.only is not None:
            return None
        offset = state.offset if groups is None else groups[0].state.offset + groups[0].shift
        sequence = self._sequences.get(id(cache))
        if sequence is None or not sequence.continues(cache, state, groups):
            reason = self._why_not() or self._unfit_cache(cache, groups is not None)
            if reason is not None:
                self._warn(reason)
                return None
            sequence = self._sequences[id(cache)] = StepSequence(self.guard, cache, state, groups, offset)
        return sequence.at(offset)

    # -- what cannot be compiled ------------------------------------------------------------------------------

    def _why_not(self) -> str | None:
        """Why no step of this guard can be compiled."""
        names = [
            f"{bound.method.name} with a gate" if bound.method.gate else bound.method.name
            for bound in self.guard.methods
            if bound.method.gate or not bound.method.compiles
        ]
        return f"{' and '.join(names)} cannot run in a compiled decode step" if names else None

    def _unfit_cache(self, cache: Any, joint: bool) -> str | None:
        if not isinstance(cache, Cache) or isinstance(cache, DynamicCache) or not cache.is_compileable:
            return f"{type(cache).__name__} grows; only a static cache (cache_implementation='static') can be compiled"
        for entry in self.guard.target.architecture.layers:
            slot = vars(entry.attention).get(SLOT)
            if slot is None or not slot.processors:
                continue
            index = getattr(entry.attention, "layer_idx", None)
            layer = cache.layers[index] if index is not None and index < len(cache.layers) else None
            if not isinstance(layer, StaticLayer) or not layer.is_initialized:
                return f"layer {entry.index} keeps its keys in a {type(layer).__name__}, not in a static cache layer"
            if layer.is_sliding and joint:
                return "two branches do not share a compiled step in models with sliding layers"
        return None

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"{reason}: its decode steps run uncompiled (see docs/compile.md)", stacklevel=2)


def uncompiled(forward: Any) -> Forward | None:
    """The function inside a compiled one; None for anything that is not compiled."""
    return (
        None
        if getattr(forward, "_torchdynamo_disable", False)
        else getattr(forward, "_torchdynamo_orig_callable", None)
    )


def refuse_compiled_parts(model: nn.Module) -> None:
    """Refuse models whose decoder, or whose hooks, would be traced together with a guard's bookkeeping.

    A `model.forward` that was replaced by its compiled version is fine: the model's hooks run around it.

    Raises:
        ValueError: the model or a part that is not its vision tower is compiled; the message says what to do.
    """
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if "vision" in name:
            continue
        in_place = getattr(module, "_compiled_call_impl", None) is not None
        replaced = bool(name) and uncompiled(vars(module).get("forward")) is not None
        if in_place or replaced or isinstance(module, torch._dynamo.OptimizedModule):
            raise ValueError(
                f"{name or 'the model'} is compiled already ({type(module).__name__}), and a guard cannot act in a "
                "graph that it does not know. Wrap the model before anything of it is compiled: generate(..., "
                "cache_implementation='static') compiles its decode steps. What may be compiled before is "
                "model.forward = torch.compile(model.forward)"
            )


def _compile(forward: Forward, config: Any) -> Forward:
    # Apart from the unguarded model's graphs: neither counts towards the other's limit of recompilations.
    return torch.compile(forward, **config.to_dict(), **accepted(torch.compile, isolate_recompiles=True))


def _compiles(model: GenerativeModel, stock: Forward, config: Any) -> bool:
    """Whether transformers would compile this model; asked without leaving anything on it."""
    names = ("_compiled_call", "_last_compile_config")
    kept = {name: model.__dict__.pop(name) for name in names if name in model.__dict__}
    try:
        return uncompiled(stock(config)) is not None
    finally:
        for name in names:
            model.__dict__.pop(name, None)
        model.__dict__.update(kept)
