"""`wrap` and `Guard`: make a model that you already loaded guarded, and give it back exactly as it was."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from vlm_guard.contrast.answer_attention import paired_attention
from vlm_guard.contrast.branched_generate import contrast_arguments, only_contrast
from vlm_guard.contrast.forward_pass import ContrastForward
from vlm_guard.families.architecture import Architecture, describe_architecture, unwrap
from vlm_guard.families.layers import select_layers
from vlm_guard.families.profiles import Profile, find_profile
from vlm_guard.grounding.answers import grounded_generate
from vlm_guard.grounding.settings import Grounding
from vlm_guard.method.attention_calls import SLOT, BoundMethod, LayerSlot
from vlm_guard.method.base import Method
from vlm_guard.method.forward_call import InputsCall
from vlm_guard.method.hooks import acts_before_logits
from vlm_guard.method.method_text import written_methods
from vlm_guard.method.registry import acting_methods, methods_for_model, resolve_methods
from vlm_guard.method.requirements import refuse_trace, refuse_unmet_needs
from vlm_guard.method.split_heads import HeadSplit
from vlm_guard.method.state import GenerationState, PromptTokens
from vlm_guard.method.target import GuardTarget
from vlm_guard.per_call import PerCall
from vlm_guard.runtime import refused_calls
from vlm_guard.runtime.attention_switch import follow_attention, restore_attention, switch_attention
from vlm_guard.runtime.compiled_decode import CompiledDecode, refuse_compiled_parts
from vlm_guard.runtime.coverage import Coverage, hooked_modules
from vlm_guard.runtime.forward_hooks import follow_forwards
from vlm_guard.runtime.gates import Gates
from vlm_guard.runtime.generate_arguments import generate_arguments, with_given_prompt
from vlm_guard.runtime.hidden_edits import install_hidden_edits
from vlm_guard.runtime.installation import GUARD_ATTRIBUTE, Undo, put_on
from vlm_guard.runtime.layer_observers import LayerObservers
from vlm_guard.runtime.placement import Placement
from vlm_guard.runtime.reading import Call, Reading
from vlm_guard.runtime.trace import AttentionTrace
from vlm_guard.runtime.vision_hooks import install_vision
from vlm_guard.self_check import check_unknown_family


def wrap(
    model: nn.Module,
    processor: Any = None,
    method: str | Method | Sequence[str | Method] = "auto",
    *,
    profile: Profile | None = None,
    attention_backend: str | None = None,
    **options: Any,
) -> "Guard":
    """Guard `model`: from now on `model.generate(...)`, `model(...)` and pipelines run with `method`.

    Args:
        model: a vision-language model from transformers (also inside PEFT, quantised, or spread by `device_map`).
        processor: its processor; may be None for methods that need none (`vlm-guard methods` says which do).
        method: a name ("var"), a combination ("var+vcd"), a `Method`, or a list of these, applied in order. "auto" is
            what the model's profile chooses (`vlm-guard tune`), else a default (`guard.describe()` says which).
        profile: facts about the model that some methods need; by default the matching shipped or saved one.
        attention_backend: "reference", "torch" or "triton"; by default the fastest that the device supports.
        **options: the method's options (`vlm-guard methods NAME` lists them).

    Returns:
        The guard: a context manager with `.remove()`, `.generate(...)` and `.trace(...)`.

    Raises:
        ValueError: unknown method or option, a value out of range, a model that cannot be guarded, a model that is
            already guarded, or a missing processor or profile; the message says what to do.
        TypeError: `model` is not a transformers model, or a method was given where the processor belongs.
    """
    refused_calls.refuse_method_as_processor(processor)
    refuse_compiled_parts(model)
    inner = unwrap(model)
    if GUARD_ATTRIBUTE in inner.__dict__:
        active = inner.__dict__[GUARD_ATTRIBUTE].describe()
        raise ValueError(
            f"this model is already guarded by {active!r}; call .remove() on that guard first, "
            "or give all methods at once, joined by '+' in one text or as a list"
        )
    architecture, profile = describe_architecture(inner), profile or find_profile(inner.config)
    methods = methods_for_model(resolve_methods(method, options), architecture, profile)
    check_unknown_family(inner, methods, Guard)
    guard = Guard(
        model, processor, methods, profile=profile, attention_backend=attention_backend, architecture=architecture
    )
    guard.attach()
    return guard


class Guard(AbstractContextManager):
    """A guarded model. Made by `wrap`.

    Attributes:
        model: the model as it was given.
        target: the model's shape, processor and profile.
        methods: the methods with what they found out about the model.
        contrast: the method that contrasts logits, or None.
        attention_backend: the backend asked for, or None for the default.
        reading: the passes of the model: which generation each belongs to, and what is known of it.
        decoding: compiles decode steps.
        observers: shows methods the hidden states of a prompt.
        placement: sees whether the model's modules are where they were.
        coverage: sees whether every edit was asked for when a prompt has been read.
        gates: where the methods with a gate act.
        contrasting: contrasts the logits of passes outside of `generate`, or None.
        switched: the configurations whose attention implementation was switched.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        methods: Sequence[Method],
        *,
        profile: Profile | None = None,
        attention_backend: str | None = None,
        architecture: Architecture | None = None,
        split: HeadSplit | None = None,
    ) -> None:
        inner = unwrap(model)
        self.model = model
        self.attention_backend = attention_backend
        self.target = GuardTarget(
            model=inner,
            processor=processor,
            architecture=architecture or describe_architecture(inner),
            profile=profile or find_profile(inner.config),
            split=split,
        )
        profile = self.target.profile
        methods, idle = acting_methods(methods, self.target)
        if profile is not None:
            methods = [item.with_settings(profile.settings_of(item.name)) for item in methods]
        refuse_unmet_needs(methods, self.target)
        self.methods = tuple(
            BoundMethod(item, item.prepare(self.target), frozenset(item.active_layers(self.target))) for item in methods
        )
        self.contrast = only_contrast(self.methods)
        self.reading = Reading(self.target, self.methods)
        self.placement = Placement(inner, self.target.architecture, hooked_modules(self.target, self.methods))
        self.coverage = Coverage(self.target, self.methods)
        self.gates = Gates(self.methods)
        self.decoding = CompiledDecode(self)
        self.observers = LayerObservers(self)
        self.contrasting = None if self.contrast is None else ContrastForward(self, self.contrast)
        self.switched: list[Any] = []
        # What follows the model's calls stays while the guard is suspended; what edits them does not.
        self._following = Undo()
        self._editing = Undo()
        self._attached = False
        self._follows_passes = False
        self._per_call = PerCall(self)
        for sentence in idle:
            self.reading.say(sentence)

    @property
    def state(self) -> GenerationState | None:
        """The last generation: its visual tokens, and what methods remember of it; None before the first."""
        return self.reading.last

    @property
    def is_attached(self) -> bool:
        """Whether the model is guarded by this guard now."""
        return self._attached

    def generate(
        self,
        *args: Any,
        method: str | Method | Sequence[str | Method] | None = None,
        grounding: bool | Grounding = False,
        **kwargs: Any,
    ) -> Any:
        """The guarded model's `generate`, also with another method for this call alone.

        Args:
            *args: of `generate`.
            method: as for `wrap`, with its options beside it (`method="vcd", strength=0.5`) or in its text
                ("vcd:strength=0.5"); "none" answers as the model is. By default the guard's own methods. A call from
                another thread waits until the running one is done.
            grounding: whether every mention of a thing gets a score; a `Grounding` says how. What is returned then is
                the output of `return_dict_in_generate=True` with `.texts`, the answers, and `.mentions`, for every
                sequence a list of `Mention`.
            **kwargs: of `generate`; `model.generate(..., guard="vcd:strength=0.5")` does the same.

        Raises:
            ValueError: a method or grounding that this model cannot have, no processor for it, or a removed guard.
        """
        refused_calls.refuse_removed_guard(self)
        if grounding:
            return grounded_generate(self, method, args, kwargs, grounding)
        return self._per_call.generate(method, args, kwargs)

    def findings(self, method: str) -> SimpleNamespace:
        """What `method` found out in this `generate` call or forward pass, apart from any decoder layer."""
        return self.reading.findings.setdefault(method, SimpleNamespace())

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, the model is as it was before it was guarded.

        A generation that runs in another thread is waited for, and one that begins there waits.
        """
        with self.reading.paused():
            self._editing.run()
            try:
                yield
            finally:
                if self._attached:
                    self._install_edits()

    @contextmanager
    def bare(self) -> Iterator["Guard"]:
        """Inside, the model is as it was, under a guard without any method, for passes that are to be traced."""
        with self.suspended(), Guard(self.target.model, self.target.processor, ()) as probe:
            probe.attach()
            yield probe

    @contextmanager
    def trace(self, layers: str = "all") -> Iterator[AttentionTrace]:
        """Record, inside this block, where every generated token's attention went (after the edits).

        Costs one more attention row per traced layer and token; off outside the block.

        Args:
            layers: the layers to record, as in `select_layers`.
        """
        refuse_trace(self.target.architecture)
        chosen = select_layers(layers, self.target.architecture.depth)
        with self.reading.holding():
            followed, edited = len(self._following), len(self._editing)
            if not self.switched:
                self._install_slots([])
            if not self._follows_passes:
                self._install_following()
            self.reading.tracer = AttentionTrace(layers=chosen)
        try:
            yield self.reading.tracer
        finally:
            with self.reading.holding():
                self.reading.tracer = None
                self._editing.run(down_to=edited)
                self._following.run(down_to=followed)

    def attach(self) -> None:
        """Guard the model again after `remove` (`wrap` has done it the first time).

        Raises:
            ValueError: the model is guarded already.
        """
        if GUARD_ATTRIBUTE in self.target.model.__dict__:
            raise ValueError("this model is already guarded; call .remove() on that guard first")
        try:
            self._attached = True
            inner = self.target.model
            self._following.add(put_on(inner, "generate", self._following_generate(inner.generate)))
            if self._follows:
                self._install_following()
            self._install_edits()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Give the model back exactly as it was. Calling it again does nothing.

        What somebody else has put on the model since stays there. A generation that runs in another thread is waited
        for.

        Raises:
            ValueError: it is called from inside a running generation, which would go on half guarded.
        """
        with self.reading.holding():
            if self.reading.is_generating and not self.reading.is_paused:
                raise ValueError(
                    "remove() was called while the model generates, by something that runs inside of generate; "
                    "remove the guard when generate has returned, or use guard.suspended() for a pass without it"
                )
            self._attached = False
            try:
                self._editing.run()
            finally:
                self._following.run()
                self.reading.forget()
                self.decoding.forget()

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict) -> "Guard":
        """Refused: a copy of a guarded model would go on calling the original."""
        raise ValueError("a guarded model cannot be copied; call .remove() on its guard first, and wrap the copy anew")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refused: hooks and running state cannot be stored."""
        raise ValueError("a guarded model cannot be pickled; call .remove() on its guard first")

    def describe(self) -> str:
        """The methods with the settings that are not their defaults, as `wrap` takes them: "pai:gain=0.4+var"."""
        return written_methods((bound.method for bound in self.methods), self.target.profile)

    # -- installing -------------------------------------------------------------------------------------------

    @property
    def _follows(self) -> bool:
        """Whether any method has to know about the model's calls."""
        return self.contrast is not None or any(acts_before_logits(bound.method) for bound in self.methods)

    def _install_following(self) -> None:
        """Follow every forward pass and `generate` call of the model."""
        inner, generator = self.target.model, self.target.architecture.generator
        begins = any(bound.method.overrides("begin_forward") for bound in self.methods)
        self._follows_passes = True
        self._following.add(self._follow_no_more, *follow_forwards(self, begins))
        self._following.add(refused_calls.refuse_continuous_batching(inner))
        self._following.add(refused_calls.refuse_class_generate(self, generator))

    def _follow_no_more(self) -> None:
        self._follows_passes = False

    def _install_edits(self) -> None:
        self._editing.add(put_on(self.target.model, GUARD_ATTRIBUTE, self))
        attention_methods = [bound for bound in self.methods if bound.method.edits_attention()]
        if attention_methods or self.reading.tracer is not None:
            self._install_slots(attention_methods)
        self._editing.add(self.observers.end)
        self.observers.begin()
        if self._follows:
            self._editing.add(*self.decoding.install(self.target.architecture.generator))
        for bound in reversed(self.methods):
            self._editing.add(*install_hidden_edits(self, bound), *install_vision(self, bound))

    def _install_slots(self, attention_methods: list[BoundMethod]) -> None:
        slots = []
        for entry in self.target.architecture.layers:
            processors = tuple(bound for bound in attention_methods if entry.index in bound.layers)
            slots.append(LayerSlot(entry.index, self, processors))
            self._editing.add(put_on(entry.attention, SLOT, slots[-1]))
        self.coverage.expect_layers(slots)
        self.switched = switch_attention(self.target.architecture)
        self._editing.add(self._restore_attention)

    def _restore_attention(self) -> None:
        configs, self.switched = self.switched, []
        restore_attention(configs)

    def _following_generate(self, original: Any) -> Any:
        reading = self.reading

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            with reading.holding():
                # Whoever kept this function after `remove`, or calls it inside `suspended`, gets the model as it is.
                if reading.is_paused or not self._attached:
                    return original(*args, **kwargs)
                choice = kwargs.pop("guard", None)
                if choice is not None:
                    return self._per_call.generate(choice, args, kwargs)
                # Families encode pictures before their first pass.
                follow_attention()
                with reading.generating() as call:
                    args, kwargs = generate_arguments(self.target, original, args, kwargs)
                    given = kwargs.get("input_ids")
                    if any(bound.method.overrides("edit_inputs") for bound in self.methods):
                        args, kwargs = self._edit_inputs(args, kwargs)
                    read = kwargs.get("input_ids")
                    self._begin_call(call, kwargs)
                    if self.contrast is not None:
                        args, kwargs = contrast_arguments(self, self.contrast, args, kwargs)
                    try:
                        return with_given_prompt(original(*args, **kwargs), given, read)
                    finally:
                        self.decoding.end()

        return generate

    def _edit_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The inputs of `generate` after the methods that rewrite them."""
        inputs, images = {name: value for name, value in kwargs.items() if name != "images"}, kwargs.get("images")
        for bound in self.methods:
            call = InputsCall(
                guard=self,
                inputs=dict(inputs),
                images=images,
                findings=self.findings(bound.method.name),
                prepared=bound.prepared,
                paired_attention=functools.partial(paired_attention, self, bound.method),
            )
            inputs = bound.method.edit_inputs(call) or inputs
        return args, inputs

    def _begin_call(self, call: Call, kwargs: dict[str, Any]) -> None:
        """What is known of a `generate` call before its first pass."""
        input_ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if isinstance(input_ids, Tensor):
            prompt = PromptTokens.of(input_ids, mask, self.target.architecture.visual_token_ids)
            call.prompt = self.reading.caches.whole_prompt(kwargs.get("past_key_values"), prompt, mask)
