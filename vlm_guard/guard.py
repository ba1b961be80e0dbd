"""`wrap` and `Guard`: make a model that you already loaded guarded, and give it back exactly as it was."""

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vlm_guard.contrast.branched_generate import contrast_arguments, only_contrast
from vlm_guard.families.architecture import describe_architecture, unwrap
from vlm_guard.families.layers import select_layers
from vlm_guard.families.profiles import Profile, find_profile
from vlm_guard.method.attention_calls import SLOT, BoundMethod, LayerSlot
from vlm_guard.method.base import Method, Sign
from vlm_guard.method.forward_call import ForwardCall, InputsCall
from vlm_guard.method.registry import resolve_methods
from vlm_guard.method.requirements import refuse_trace, refuse_unmet_needs
from vlm_guard.method.state import GenerationState, PromptTokens
from vlm_guard.method.target import GuardTarget
from vlm_guard.runtime.attention_switch import restore_attention, switch_attention
from vlm_guard.runtime.branch_rows import RowGroup
from vlm_guard.runtime.compiled_decode import CompiledDecode, refuse_compiled_parts
from vlm_guard.runtime.decode_step import DecodeStep
from vlm_guard.runtime.embedded_prompt import follow_forwards, named_arguments
from vlm_guard.runtime.known_caches import KnownCaches, inside_generation
from vlm_guard.runtime.layer_observers import LayerObservers
from vlm_guard.runtime.refused_calls import refuse_continuous_batching, refuse_forward
from vlm_guard.runtime.trace import AttentionTrace

if TYPE_CHECKING:
    from collections.abc import Iterator

GUARD_ATTRIBUTE = "_vlm_guard"
_READING_STATIONS = ("attach", "edit_inputs", "begin_forward")


def wrap(
    model: nn.Module,
    processor: Any = None,
    method: str | Method | Sequence[str | Method] = "var",
    *,
    profile: Profile | None = None,
    attention_backend: str | None = None,
    **options: Any,
) -> "Guard":
    """Guard `model`: from now on `model.generate(...)`, `model(...)` and pipelines run with `method`.

    Args:
        model: a vision-language model from transformers (also inside PEFT, quantised, or spread by `device_map`).
        processor: its processor; may be None for methods that need none (`vlm-guard methods` says which do).
        method: a name ("var"), a combination ("var+vcd"), a `Method`, or a list of these, applied in order.
        profile: facts about the model that some methods need; by default the matching shipped or saved one.
        attention_backend: "reference", "torch" or "triton"; by default the fastest that the device supports.
        **options: the method's options (`vlm-guard methods NAME` lists them).

    Returns:
        The guard: a context manager with `.remove()`, `.generate(...)` and `.trace(...)`.

    Raises:
        ValueError: unknown method or option, a value out of range, a model that cannot be guarded, a model that is
            already guarded, or a missing processor or profile; the message says what to do.
        TypeError: `model` is not a transformers model.
    """
    refuse_compiled_parts(model)
    inner = unwrap(model)
    if GUARD_ATTRIBUTE in inner.__dict__:
        active = "+".join(bound.method.name for bound in inner.__dict__[GUARD_ATTRIBUTE].methods)
        raise ValueError(
            f"this model is already guarded by {active!r}; call .remove() on that guard first, "
            f"or combine methods in one call, for example '{active}+vcd'"
        )
    methods = resolve_methods(method, options)
    guard = Guard(model, processor, methods, profile=profile, attention_backend=attention_backend)
    guard.attach()
    return guard


class Guard(AbstractContextManager):
    """A guarded model. Made by `wrap`.

    Attributes:
        model: the model as it was given.
        methods: the methods with what they found out about the model.
        target: the model's shape, processor and profile.
        state: the running (or last) generation; None before the first.
        attention_backend: the backend asked for, or None for the default.
        step: the compiled decode step that is running, or None.
        decoding: compiles decode steps.
        probing: whether a method or a contrast branch is running the vision tower for itself, which methods that
            look at the given images leave alone.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        methods: Sequence[Method],
        *,
        profile: Profile | None = None,
        attention_backend: str | None = None,
    ) -> None:
        inner = unwrap(model)
        self.model = model
        self.attention_backend = attention_backend
        self.state: GenerationState | None = None
        self.target = GuardTarget(
            model=inner,
            processor=processor,
            architecture=describe_architecture(inner),
            profile=profile or find_profile(inner.config),
        )
        profile = self.target.profile
        if profile is not None:
            methods = [item.with_settings(profile.settings_of(item.name)) for item in methods]
        refuse_unmet_needs(methods, self.target)
        self.methods = tuple(
            BoundMethod(item, item.prepare(self.target), frozenset(item.active_layers(self.target))) for item in methods
        )
        self.tracer: AttentionTrace | None = None
        self.contrast = only_contrast(self.methods)
        self.row_groups: tuple[RowGroup, ...] | None = None
        self.joint_cache: Any = None
        self._caches = KnownCaches()
        self._side: Sign = "positive"
        # One generation at a time: a guard has one state. Reentrant, as methods run passes of their own inside.
        self._generating = threading.RLock()
        self._undo: list[Callable[[], Any]] = []
        self._slots_installed = False
        self._reads_forwards = False
        self._warned_no_image = False
        self._prompt: PromptTokens | None = None
        self.probing = False
        self._findings: dict[str, SimpleNamespace] = {}
        self.step: DecodeStep | None = None
        self.decoding = CompiledDecode(self)
        self._observers = LayerObservers(self)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The guarded model's `generate`."""
        return self.model.generate(*args, **kwargs)

    def findings(self, method: str) -> SimpleNamespace:
        """What `method` found out in this `generate` call or forward pass, apart from any decoder layer."""
        return self._findings.setdefault(method, SimpleNamespace())

    @contextmanager
    def suspended(self) -> "Iterator[None]":
        """Inside, the model is as it was before it was guarded (for passes that a method runs on its own)."""
        kept = (self.state, self._prompt, self._findings)
        while self._undo:
            self._undo.pop()()
        try:
            yield
        finally:
            self.attach()
            if self.tracer is not None and not self._slots_installed:
                self._install_slots([])
            self.state, self._prompt, self._findings = kept

    @contextmanager
    def trace(self, layers: str = "all") -> "Iterator[AttentionTrace]":
        """Record, inside this block, where every generated token's attention went (after the edits).

        Costs one more attention row per traced layer and token; off outside the block.

        Args:
            layers: the layers to record, as in `select_layers`.
        """
        refuse_trace(self.target.architecture)
        chosen = select_layers(layers, self.target.architecture.depth)
        before = len(self._undo)
        if not self._slots_installed:
            self._install_slots([])
        if not self._reads_forwards:
            self._install_reading()
        self.tracer = AttentionTrace(layers=chosen)
        try:
            yield self.tracer
        finally:
            self.tracer = None
            while len(self._undo) > before:
                self._undo.pop()()

    def attach(self) -> None:
        """Guard the model again after `remove` (`wrap` has done it the first time).

        Raises:
            ValueError: the model is guarded already.
        """
        if GUARD_ATTRIBUTE in self.target.model.__dict__:
            raise ValueError("this model is already guarded; call .remove() on that guard first")
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Give the model back exactly as it was. Calling it again does nothing."""
        while self._undo:
            self._undo.pop()()
        self.state = None
        self._caches.forget()
        self.decoding.forget()

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict) -> "Guard":
        """Refused: a copy of a guarded model would go on calling the original."""
        raise ValueError("a guarded model cannot be copied; call .remove() on its guard first, and wrap the copy anew")

    def __reduce_ex__(self, protocol: int) -> Any:
        """Refused: hooks and running state cannot be stored."""
        raise ValueError("a guarded model cannot be pickled; call .remove() on its guard first")

    @property
    def is_attached(self) -> bool:
        """Whether the model is guarded by this guard now."""
        return bool(self._undo)

    def _install(self) -> None:
        inner = self.target.model
        inner.__dict__[GUARD_ATTRIBUTE] = self
        self._undo.append(lambda: inner.__dict__.pop(GUARD_ATTRIBUTE))
        attention_methods = [bound for bound in self.methods if bound.method.edits_attention()]
        if attention_methods:
            self._install_slots(attention_methods)
        self._undo.append(self._observers.end)
        self._observers.begin()
        hooked = [bound for bound in self.methods if any(bound.method.overrides(name) for name in _READING_STATIONS)]
        if attention_methods or self._observers or hooked or self.contrast is not None:
            self._install_reading()
            self._undo.extend(self.decoding.install(self.target.architecture.generator))
        for bound in self.methods:
            self._undo.extend(bound.method.attach(self, bound.prepared))

    def _install_reading(self) -> None:
        """Follow every forward pass and `generate` call of the model."""
        inner = self.target.model
        self._reads_forwards = True
        self._undo.append(lambda: setattr(self, "_reads_forwards", False))
        begins = any(bound.method.overrides("begin_forward") for bound in self.methods)
        self._undo.extend(follow_forwards(self, begins))
        self._undo.append(refuse_continuous_batching(inner))
        self._install_generate()

    def _install_slots(self, attention_methods: list[BoundMethod]) -> None:
        modules = []
        for entry in self.target.architecture.layers:
            processors = tuple(bound for bound in attention_methods if entry.index in bound.layers)
            object.__setattr__(entry.attention, SLOT, LayerSlot(entry.index, self, processors))
            modules.append(entry.attention)
        self._undo.append(lambda: [module.__dict__.pop(SLOT) for module in modules])
        configs = switch_attention(self.target.architecture)
        self._undo.append(lambda: restore_attention(configs))
        self._slots_installed = True
        self._undo.append(lambda: setattr(self, "_slots_installed", False))

    def _install_generate(self) -> None:
        inner = self.target.model
        original = inner.generate

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            with self._generating, inside_generation(self):
                self._findings = {}
                args, kwargs = named_arguments(self.target, original, args, kwargs)
                if any(bound.method.overrides("edit_inputs") for bound in self.methods):
                    args, kwargs = self._edit_inputs(args, kwargs)
                with self._generation(args, kwargs):
                    if self.contrast is not None:
                        args, kwargs = contrast_arguments(self, args, kwargs)
                    return original(*args, **kwargs)

        # On the instance: pipelines and wrappers around the model find it, and the class stays untouched.
        inner.__dict__["generate"] = generate
        self._undo.append(lambda: inner.__dict__.pop("generate"))

    def _edit_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The inputs of `generate` after the methods that rewrite them; prompt ids become a keyword."""
        inputs = dict(kwargs)
        images = inputs.pop("images", None)
        if args:
            inputs["input_ids"], args = args[0], args[1:]
        for bound in self.methods:
            call = InputsCall(
                guard=self,
                inputs=dict(inputs),
                images=images,
                findings=self.findings(bound.method.name),
                prepared=bound.prepared,
            )
            inputs = bound.method.edit_inputs(call) or inputs
        return args, inputs

    @contextmanager
    def _generation(self, args: tuple, kwargs: dict[str, Any]) -> "Iterator[None]":
        input_ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
        if isinstance(input_ids, Tensor):
            if input_ids.dim() != 2:
                raise ValueError(
                    f"input_ids must be [batch, length], given {list(input_ids.shape)}; "
                    "add a batch dimension, for example input_ids[None]"
                )
            token_ids = self.target.architecture.visual_token_ids
            self._prompt = PromptTokens.of(input_ids, kwargs.get("attention_mask"), token_ids)
        past, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        self.state, self._prompt = self._caches.go_on(past, self._prompt, mask)
        try:
            yield
        finally:
            self._prompt = None
            self.decoding.end()

    def rows_of(self, side: Sign) -> slice:
        """The rows of the running forward pass that belong to a contrast branch; all rows without one.

        For hooks of a method's own: an edit is for the rows of its `edited_branch` only.
        """
        if self.row_groups is None:
            return slice(None) if side == self._side else slice(0, 0)
        return next(slice(group.first, group.stop) for group in self.row_groups if group.state.side == side)

    @contextmanager
    def branch(self, side: Sign, prompt: PromptTokens, state: GenerationState | None) -> "Iterator[None]":
        """Forward passes inside belong to one contrast branch and its `state` (None: it begins)."""
        kept = (self.state, self._side, self._prompt)
        self.state, self._side, self._prompt = state, side, prompt
        try:
            yield
        finally:
            self.state, self._side, self._prompt = kept

    def _read_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before every forward pass: begin a new generation, or take in the next tokens of this one."""
        refuse_forward(self, module, kwargs)
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        cache = kwargs.get("past_key_values")
        if input_ids is None:
            raise ValueError(
                "a guarded model finds the visual tokens in input_ids, but was called with inputs_embeds only; "
                "pass input_ids, or remove the guard for this call"
            )
        if self.decoding.follows(cache, input_ids):
            return
        offset = 0 if cache is None else int(cache.get_seq_length())
        if self.row_groups is not None and cache is self.joint_cache:
            for group in self.row_groups:
                group.state.reading, group.state.offset = False, offset - group.shift
                if group.state.side == "positive":
                    self.state = group.state
            self._observers.end()
            return
        state = self.state
        if offset and (state is None or state.cache is None or state.cache() is not cache):
            self.state = state = self._caches.state_of(cache)
        if offset:
            if input_ids.shape[1] == 1 and state.prompt is not None and offset >= state.prompt.length:
                state.reading, state.offset = False, offset
                self._observers.end()
                return
        elif state is None or self._prompt is None or cache is not None:
            if self._prompt is None:
                self._findings = {}
            state = GenerationState(self.target.architecture.visual_token_ids, self._prompt, self._side)
        self.state = state
        state.compiled = self.decoding.asked
        self._observers.begin()
        state.read(input_ids, kwargs.get("attention_mask"), offset, cache)
        self._caches.remember(cache, state)
        if not state.active and not self._warned_no_image and state.side == "positive":
            self._warned_no_image = True
            warnings.warn("the prompt has no visual token: the guard does nothing for it", stacklevel=2)

    def _begin_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Let methods change the inputs of a forward pass that reads a prompt."""
        state = self.state
        if state is None or not state.reading or not state.active:
            return None
        inputs = dict(kwargs)
        if args:
            inputs["input_ids"], args = args[0], args[1:]
        for bound in self.methods:
            call = ForwardCall(guard=self, inputs=inputs, state=state, prepared=bound.prepared)
            if bound.method.edited_branch != state.side:
                continue
            bound.method.begin_forward(call)
        return args, inputs
