"""What a method is, how it declares itself, and how methods are found by name.

A method is a frozen dataclass in one file of `vlm_guard/methods/` (or of a package that offers the entry-point group
`vlm_guard.methods`). Its fields are its options: they make the command-line options, the demo's controls, the tables
and the test matrix. It holds no state: what it learns about one generation lives in `call.memory`.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from vlm_guard.method.gate import Gate
from vlm_guard.method.method_source import method_source
from vlm_guard.method.option_types import check_type
from vlm_guard.untrusted.printed_text import shown

if TYPE_CHECKING:
    from types import SimpleNamespace

    from torch import Tensor

    from vlm_guard.families.layer_parts import Part
    from vlm_guard.families.profiles import Fact, Setting
    from vlm_guard.kernels.attention_edit import AttentionEdit
    from vlm_guard.method.attention_calls import AttentionCall, HiddenCall
    from vlm_guard.method.contrasting import Branch, ContrastCall
    from vlm_guard.method.findings import Finding, FindingsCall
    from vlm_guard.method.forward_call import ForwardCall, InputsCall
    from vlm_guard.method.hidden_edit_call import HiddenEditCall
    from vlm_guard.method.measure_call import MeasureCall
    from vlm_guard.method.read_out_call import ReadOutCall
    from vlm_guard.method.search_call import SearchCall
    from vlm_guard.method.state import GenerationState
    from vlm_guard.method.target import GuardTarget
    from vlm_guard.method.vision_calls import VisionEditCall, VisionPassCall, VisionPlan, VisionRowCall

RowScope = Literal["all", "text", "answer"]
Sign = Literal["positive", "negative"]
Station = Literal["inputs", "vision", "hidden", "attention", "logits"]
DEFAULT, PUBLISHED = "default", "published"
STATIONS: tuple[Station, ...] = ("inputs", "vision", "hidden", "attention", "logits")


def option(
    default: Any,
    *,
    help: str,
    range: tuple[float, float] | None = None,
    choices: Sequence[str] | None = None,
    neutral: Any = MISSING,
    tried: Sequence[float] = (),
    paper: str = "",
    published: Any = MISSING,
) -> Any:
    """A method's option: a dataclass field that knows how to present and check itself.

    Args:
        default: the value used when none is given.
        help: one sentence for people; shown by the command line and the demo.
        range: smallest and largest allowed number, both included.
        choices: the allowed words.
        neutral: the value that (with the other neutral values) makes the method the identity.
        tried: values other than the default that a sweep tries beside the method's strength.
        paper: the paper's symbol and where the default comes from.
        published: the published value where the default departs from it; `variant="published"` takes it.
    """
    details: dict[str, Any] = {
        "help": help,
        "range": range,
        "choices": tuple(choices) if choices else None,
        "paper": paper,
    }
    details["tried"] = tuple(tried)
    if neutral is not MISSING:
        details["neutral"] = neutral
    if published is not MISSING:
        details["published"] = published
    return field(default=default, metadata=MappingProxyType(details))


def variant_option(help: str) -> Any:
    """The option `variant` of a method with a default that departs from what was published.

    Args:
        help: what "published" changes, one sentence; the values stand at the options themselves (`published`).
    """
    return option(DEFAULT, help=help, choices=(DEFAULT, PUBLISHED), paper="see docs/methods.md, paper against code")


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods. Override the stations you act at; everything else keeps the model's behaviour.

    Class attributes:
        name: the registered name, the file's stem.
        title: the method's name as its paper writes it.
        paper: citation with arXiv id.
        stations: where it acts, out of `STATIONS`.
        needs: what must be there: "processor", "second branch", "calibration", "gradients".
        rows: the query rows its attention edit is for: "text" (text rows after the first visual token and every
            generated row), "answer" (the last prompt row and every generated row) or "all".
        hidden_rows: the rows whose hidden states `edit_hidden` gets, in the same words.
        steady: whether all decode steps after a prompt use the same edit, which is then asked for once; it must not
            depend on what the queries, keys and values of a step contain.
        whole_prompt: the rows of a prompt that it must see in one pass ("all", "text"), because it learns from them as
            a whole; a cached beginning with such rows is refused. None for methods that read row by row.
        counts_steps: whether its contrast of logits depends on how many tokens of the answer come before.
        compiles: whether a decode step with this method can be one compiled graph: what it does in a step is nothing,
            or a steady edit, or a contrast of logits. Without it the steps run uncompiled.
        observes_hidden: whether `observe_hidden` wants the hidden states that enter the layers.
        edited_branch: with a contrast branch, the side whose rows its attention edit and observations are for.
        measurement: what `measure` finds out about a model: its name for `vlm-guard calibrate --only`, and a few words.
        cross_attention: why it means nothing for models that read images in cross-attention layers, all of whose keys
            are visual while self-attention has no visual keys; empty where it does mean something. It counts for
            methods that act before the logits.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    stations: ClassVar[tuple[Station, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    hidden_rows: ClassVar[RowScope] = "answer"
    steady: ClassVar[bool] = False
    counts_steps: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    observes_hidden: ClassVar[bool] = False
    edited_branch: ClassVar[Sign] = "positive"
    measurement: ClassVar[tuple[str, str] | None] = None
    if TYPE_CHECKING:
        # Class attributes, which a method may make properties where they depend on its options.
        @property
        def rows(self) -> RowScope: ...  # noqa: D102
        @property
        def whole_prompt(self) -> RowScope | None: ...  # noqa: D102
        @property
        def cross_attention(self) -> str: ...  # noqa: D102
    else:
        rows: ClassVar[RowScope] = "text"
        whole_prompt: ClassVar[RowScope | None] = None
        cross_attention: ClassVar[str] = (
            "it tells visual keys from the others of a row, and no row has both kinds there"
        )

    gate: str = option(
        "",
        help="act only at unsure steps: entropy>0.5 (nats), max_p<0.7 or rival>=0.1; empty acts at all",
        paper="after CAI and AdaVBoost; see docs/methods.md",
    )

    # By option what set it: "given", "published", or the profile that has it for the model; absent is the default.
    _sources: ClassVar[dict[str, str]] = {}

    def __new__(cls, **options: Any) -> Self:
        """Remember which options were given: only the others may follow the model's published settings."""
        method = super().__new__(cls)
        object.__setattr__(method, "_sources", dict.fromkeys(options, "given"))
        return method

    def __post_init__(self) -> None:
        if getattr(self, "variant", DEFAULT) == PUBLISHED:
            departing = (item for item in fields(self) if "published" in item.metadata)
            self.take_values({item.name: (item.metadata["published"], PUBLISHED) for item in departing})
        for item in fields(self):
            _check_option(type(self), item, getattr(self, item.name))
        Gate.read(self.gate, self.name or type(self).__name__)

    def with_settings(self, settings: "Mapping[str, Setting]") -> Self:
        """The same method with a model's published settings, for the options that were not given.

        Args:
            settings: by option, as `Profile.settings_of` has them.

        Raises:
            ValueError: a setting names no option of this method, or is a value that the option does not allow.
        """
        unknown = sorted({*settings} - {item.name for item in fields(self)})
        if unknown:
            raise ValueError(f"the profile has settings of {self.name} that are no option of it: {', '.join(unknown)}")
        values = {name: setting for name, setting in settings.items() if self._sources.get(name) != "given"}
        if not values:
            return self
        method = copy.copy(self)
        object.__setattr__(method, "_sources", dict(self._sources))
        method.take_values({name: (setting.value, setting.origin) for name, setting in values.items()})
        for item in fields(method):
            _check_option(type(self), item, getattr(method, item.name))
        return method

    def take_values(self, values: "Mapping[str, tuple[Any, str]]") -> None:
        """Set options that were not given, while the method is made; pairs of the value and what it comes from."""
        for name, (value, source) in values.items():
            if self._sources.get(name) != "given":
                object.__setattr__(self, name, value)
                self._sources[name] = source

    # -- stations ---------------------------------------------------------------------------------------------

    def prepare(self, target: "GuardTarget") -> Any:
        """Look at the model once, when it is wrapped; the result is handed back as `call.prepared`.

        Raises:
            ValueError: the model lacks what the method needs; the message says what to do.
        """
        return None

    def active_layers(self, target: "GuardTarget") -> tuple[int, ...]:
        """The decoder layers whose attention this method may edit; by default its `layers` option."""
        from vlm_guard.families.layers import select_layers_of

        return select_layers_of(getattr(self, "layers", "all"), target)

    def why_idle(self, target: "GuardTarget") -> str:
        """Why it changes nothing on this model although the model takes it; empty where it does, or nobody knows."""
        return ""

    def prompt_layers(self, target: "GuardTarget") -> tuple[int, ...]:
        """The decoder layers of which it must see more rows of a prompt than the last; none by default.

        A method with `whole_prompt` must see those of all its layers, unless it says which.
        """
        return self.active_layers(target) if self.whole_prompt is not None else ()

    def observe_hidden(self, call: "HiddenCall") -> None:
        """See the hidden state entering a layer while the prompt is read; may store findings in `call.memory`."""

    def edit_attention(self, call: "AttentionCall") -> "AttentionEdit | None":
        """The attention processor of this method: the edit for the rows of this call, or None for no change."""
        return None

    def join_memory(self, kept: "Sequence[SimpleNamespace]", state: "GenerationState") -> "SimpleNamespace":
        """One memory of a layer for generations that are decoded side by side, from what is `kept` for each.

        An engine asks a method that has it about all their rows in one call, row by row a batch of its own, with fewer
        keys in some rows than in others; without it, or `steady`, their rows are edited one after another. `state` is
        that of all, with the visual tokens of each.
        """
        raise NotImplementedError(f"{type(self).__name__} edits generations one after another")

    def hidden_parts(self, target: "GuardTarget", prepared: Any) -> "Mapping[Part, Sequence[int]]":
        """The decoder layers whose parts `edit_hidden` gets; by default the residual stream behind its `layers`.

        Parts are "attention" and "mlp", what these add to the residual stream, "residual", the stream behind a layer,
        and "entering", the stream in front of it.
        """
        from vlm_guard.families.layers import select_layers_of

        return {"residual": select_layers_of(getattr(self, "layers", "all"), target)}

    def edit_hidden(self, call: "HiddenEditCall") -> "Tensor | None":
        """Other hidden states [B, R, hidden size] than `call.hidden`, or None to leave them."""
        return None

    def vision_plan(self, target: "GuardTarget", prepared: Any) -> "VisionPlan | None":
        """Where it acts in the vision tower, for a method with one of the three hooks below; None for nowhere."""
        return None

    def begin_vision(self, call: "VisionPassCall") -> None:
        """Look at images before they enter the vision tower; may keep findings in `call.memory`."""

    def observe_vision(self, call: "VisionRowCall") -> None:
        """See one attention row of a layer of the vision tower (`VisionPlan.watched`)."""

    def edit_vision(self, call: "VisionEditCall") -> "Tensor | None":
        """Other hidden states [N, T, C] of the vision tower than `call.hidden`, or None to leave them."""
        return None

    def edit_inputs(self, call: "InputsCall") -> "dict[str, Any] | None":
        """Other arguments for this `generate` call than the given `call.inputs`, or None to leave them."""
        return None

    def begin_forward(self, call: "ForwardCall") -> None:
        """Change `call.inputs` of a forward pass that reads a prompt, before it runs."""

    def reads_ahead(self, target: "GuardTarget", prepared: Any) -> str:
        """Why `begin_forward` runs passes of its own or changes the inputs; empty where it only looks at them, or where
        it is brought both streams (`reads_beside`).

        Such a method can be served where a prompt is read once. The reason says how to avoid it, where one can.
        """
        return "it reads the prompt a second time beforehand"

    def reads_beside(self) -> bool:
        """Whether it compares a prompt with the same prompt without its image, read side by side.

        Then whoever runs the model may bring both (`GenerationState.streams`), and `begin_forward` reads nothing.
        """
        return False

    def contrasts(self) -> bool:
        """Whether this method, with its options, changes the logits; then one of the two pairs or the last is used."""
        return False

    def contrast_branch(self, call: "ContrastCall") -> "Branch | None":
        """The second branch for this prompt, or None when the method compares layers instead of branches."""
        return None

    def combine_logits(self, positive: "Tensor", negative: "Tensor", step: int) -> "Tensor":
        """The logits [B, V] of both branches as one; `step` counts the generated tokens from 0."""
        return positive

    def early_layers(self, target: "GuardTarget") -> tuple[int, ...]:
        """The layers whose entering hidden states are read out as logits (index 0: the embeddings)."""
        return ()

    def read_out(self, call: "ReadOutCall") -> "Tensor":
        """The states [B, E, D] to read out beside the model's own; by default those that enter `early_layers`."""
        import torch

        states = [state.to(call.final.device) for state in call.entering.values()]
        early = torch.stack(states, 1) if states else call.final[:, None][:, :0]
        return call.norm(early) if states and getattr(self, "final_norm", False) else early

    def combine_read_out(self, call: "ReadOutCall", final: "Tensor", extra: "Tensor") -> "Tensor":
        """The final logits [B, V] and those of `read_out` [E, B, V] as one; by default `combine_layers`."""
        return self.combine_layers(final, extra, tuple(call.entering))

    def combine_layers(self, final: "Tensor", early: "Tensor", layers: tuple[int, ...]) -> "Tensor":
        """The final logits [B, V] and those of the early `layers` [E, B, V] as one [B, V]."""
        return final

    def edit_logits(self, logits: "Tensor", first: "Tensor", step: int) -> "Tensor":
        """Other logits [B, V] of generated token `step`, from the model's and those of the `first` token [B, V]."""
        return logits

    def search(self, call: "SearchCall") -> "tuple[Tensor, Tensor]":
        """The whole answer [T] by a search of its own, and its score, a scalar; needs an option `beams`."""
        raise NotImplementedError(f"{type(self).__name__} has no search of its own")

    # -- what it must know ------------------------------------------------------------------------------------

    @classmethod
    def measure(cls, call: "MeasureCall") -> "Mapping[str, Fact]":
        """Measure facts about a model, for its profile; for a method with a `measurement`.

        Raises:
            ValueError: the model does not allow it; the message says why.
        """
        return {}

    # -- what it learned --------------------------------------------------------------------------------------

    def findings(self, call: "FindingsCall") -> "Sequence[Finding]":
        """What this method found out about the picture of the answer just given, for people to look at."""
        return ()

    # -- description ------------------------------------------------------------------------------------------

    @classmethod
    def options(cls) -> "tuple[Field[Any], ...]":
        """The options of this method, in their order; that of every method, its gate, is the last."""
        return tuple(sorted(fields(cls), key=lambda item: item.name == "gate"))

    @classmethod
    def neutral(cls) -> "Method":
        """The method with every option at its neutral value, which must be the identity."""
        values = {item.name: item.metadata["neutral"] for item in fields(cls) if "neutral" in item.metadata}
        return cls(**values)

    @classmethod
    def edits_attention(cls) -> bool:
        """Whether this class acts as an attention processor."""
        return cls.edit_attention is not Method.edit_attention

    @classmethod
    def overrides(cls, station: str) -> bool:
        """Whether this class defines the method `station` of the base class anew."""
        return getattr(cls, station) is not getattr(Method, station)

    def describe(self) -> dict[str, Any]:
        """Name, option values and what set those that are not defaults, as written into results.

        A method from outside of this package also says which file it is from, and a hash of it (`method_source`).
        """
        options = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "gate" or self.gate}
        described = {"method": self.name, "options": options, "sources": dict(self._sources)}
        file = method_source(type(self))
        return described if file is None else {**described, "file": file}


def _check_option(cls: type[Method], item: Field, value: Any) -> None:
    method = cls.name or cls.__name__
    check_type(method, cls, item, value)
    allowed, choices = item.metadata.get("range"), item.metadata.get("choices")
    if choices is not None and value not in choices:
        raise ValueError(f"{method}: option {item.name} is {shown(value)}; allowed: {', '.join(choices)}")
    if allowed is None or value is None:
        return
    if not math.isfinite(value) or not allowed[0] <= value <= allowed[1]:
        raise ValueError(f"{method}: option {item.name} is {shown(value)}; allowed: {allowed[0]} to {allowed[1]}")
