"""Which methods a server offers, and under which names. Declared once, at start; requests only name one of them.

    pai;m3id;strict=pai:gain=0.5

is three offers: "pai", "m3id", and "strict", which is PAI with a gain of 0.5. An offer without a name of its own is
called by its text. So nothing that a request says is ever parsed as a method, and what a method lacks of this model is
said before the server answers anybody.
"""

import json
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from vlm_guard import __version__
from vlm_guard.environment import version_of
from vlm_guard.grounding.settings import Part
from vlm_guard.method.base import Method, Sign
from vlm_guard.method.hooks import acts_in_model, hooks_of, needs_whole_prompt
from vlm_guard.method.registry import resolve_methods
from vlm_guard.serving.vllm.grounding.lens_keys import LENS, is_issued
from vlm_guard.serving.vllm.versions import installed_version
from vlm_guard.untrusted.printed_text import shown

ENVIRONMENT = "VLM_GUARD_SERVE"
PLAIN = "none"
KEY = "vlm_guard"
SERVED_PARTS: tuple[Part, ...] = ("lens", "self_check")
"""The parts of a mention's score that are measured inside vLLM."""
_NAMED = re.compile(r"\s*([A-Za-z][\w-]*)\s*=(.+)", re.DOTALL)

# The hooks that run there. The last two are the paired scheduler's.
_SERVED = ("edit_attention", "observe_hidden", "contrast_branch", "combine_logits")
# This one runs there in methods that say, for each model, that they need no pass of their own for it (`reads_ahead`).
_LOOKS_AHEAD = "begin_forward"
# The others, and why they cannot.
_UNSERVED = {
    "edit_inputs": "it rewrites the picture after an answer of its own, and vLLM gives a request one reading",
    "begin_forward": "it reads the prompt a second time beforehand, and vLLM gives a request one reading",
    "begin_vision": "it looks into the vision tower, whose results vLLM keeps and shares between requests",
    "observe_vision": "it looks into the vision tower, whose results vLLM keeps and shares between requests",
    "edit_vision": "it edits the vision tower, whose results vLLM keeps and shares between requests",
    "edit_hidden": "it edits hidden states, which vLLM's attention backends do not see",
    "search": "it searches for a whole answer, and vLLM goes token by token",
    "edit_logits": "it needs the logits of the answer's first token, which are gone when vLLM reads a request again",
    "read_out": "it needs the hidden states of layers, which are gone when vLLM computes logits",
    "combine_read_out": "it needs the hidden states of layers, which are gone when vLLM computes logits",
    "combine_layers": "it needs the hidden states of early layers, which are gone when vLLM computes logits",
}


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One method, or combination, that requests may name.

    Attributes:
        name: how requests name it.
        text: the methods with their settings, as `wrap` reads them.
        methods: the same as objects.
    """

    name: str
    text: str
    methods: tuple[Method, ...] = field(repr=False)

    @property
    def contrasts(self) -> bool:
        """Whether its requests are read twice."""
        return any(method.contrasts() for method in self.methods)

    @property
    def whole_prompt(self) -> bool:
        """Whether a prompt must be read in one step."""
        return any(method.whole_prompt is not None and method.edits_attention() for method in self.methods)

    @property
    def observes(self) -> bool:
        """Whether it looks at the hidden states that enter the layers."""
        return any(method.observes_hidden for method in self.methods)

    @property
    def reads_beside(self) -> bool:
        """Whether a prompt is read in one step with its text alone."""
        return any(method.reads_beside() for method in self.methods)

    def reads_anew(self, side: Sign) -> bool:
        """Whether a branch's prompt must be read from its first token on, nothing of it taken from a cache."""
        return self.whole_prompt or any(needs_whole_prompt(method, side) for method in self.methods)

    def edited(self, side: str) -> list[Method]:
        """The methods that edit the attention of one of the two branches."""
        return [method for method in self.methods if method.edits_attention() and method.edited_branch == side]

    def salt(self, side: str) -> str:
        """What tells the keys and values of this offer's branch from the plain model's; empty where they are these."""
        edited = [method.describe() for method in self.edited(side)]
        return f"vlm_guard {json.dumps(edited, sort_keys=True, default=str)}" if edited else ""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a server offers.

    Attributes:
        offers: by the name that requests use.
        default: the offer of requests that name none, or `PLAIN`.
        grounding: the parts of the score of mentions that it measures; none if it scores none.
    """

    offers: Mapping[str, Offer]
    default: str = PLAIN
    grounding: tuple[Part, ...] = ()

    @classmethod
    def read(cls, text: str, default: str | None = None, grounding: str | None = None) -> "Declaration":
        """From `--methods`, `--default` and `--grounding`.

        Args:
            text: offers between semicolons, each `METHODS` or `NAME=METHODS`.
            default: the name of the offer for requests that name none; none leaves these plain.
            grounding: what is measured of mentions, such as "lens,self_check"; none if nobody asks for it.

        Raises:
            ValueError: unknown methods or settings, a name twice, or a method that cannot be served, with the reason;
                unknown parts; or nothing is offered.
        """
        parts = _grounding_parts(grounding or "")
        offers: dict[str, Offer] = {}
        for part in filter(None, (piece.strip() for piece in text.split(";"))):
            named = _NAMED.fullmatch(part)
            name, methods = (named[1], named[2].strip()) if named else (part, part)
            if name in offers or name == PLAIN:
                raise ValueError(
                    f"--methods has {shown(name)} twice"
                    if name in offers
                    else f"--methods: {PLAIN!r} is the plain model, which every server offers; leave it out"
                )
            offers[name] = Offer(name=name, text=methods, methods=served_methods(methods))
        if not offers and not parts:
            raise ValueError(
                "--methods names no method; write for example --methods 'pai;m3id;strict=pai:gain=0.5', or --grounding "
                f"{','.join(SERVED_PARTS)} to score what answers mention"
            )
        chosen = default or PLAIN
        if chosen not in (PLAIN, *offers):
            raise ValueError(f"--default {shown(chosen)} is not offered; offered: {PLAIN}, {', '.join(offers)}")
        return cls(offers=offers, default=chosen, grounding=parts)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> "Declaration | None":
        """What the process that started this one declared; None where nothing is."""
        given = (os.environ if environment is None else environment).get(ENVIRONMENT, "")
        if not given.strip():
            return None
        if given.lstrip().startswith("{"):
            declared = json.loads(given)
            return cls.read(declared["methods"], declared.get("default"), declared.get("grounding"))
        return cls.read(given)

    def write(self, environment: MutableMapping[str, str]) -> None:
        """Declare it to the processes that are started from now on."""
        methods = ";".join(
            offer.text if offer.text == offer.name else f"{offer.name}={offer.text}" for offer in self.offers.values()
        )
        declared = {"methods": methods, "default": self.default, "grounding": ",".join(self.grounding)}
        environment[ENVIRONMENT] = json.dumps(declared)

    def describe(self) -> dict[str, Any]:
        """What a server tells its clients, as JSON can hold it.

        Returns:
            `offers`: by name every method with all its settings. `default`: the name for requests that name none.
            `grounding`: what it measures of mentions. `versions`: of the packages that make the answers.
        """
        versions = {name: version_of(name) for name in ("torch", "transformers")} | {"vllm": installed_version()}
        return {
            "offers": {
                name: [json.loads(json.dumps(method.describe(), default=str)) for method in offer.methods]
                for name, offer in self.offers.items()
            },
            "default": self.default,
            "grounding": list(self.grounding),
            "versions": {"vlm_guard": __version__}
            | {name: version for name, version in versions.items() if version is not None},
        }

    @property
    def contrasts(self) -> bool:
        """Whether any offer is read twice."""
        return any(offer.contrasts for offer in self.offers.values())

    @property
    def reads_two(self) -> bool:
        """Whether any request of any offer has a second one beside it."""
        return self.contrasts or self.reads_beside

    @property
    def reads_beside(self) -> bool:
        """Whether any offer reads a prompt in one step with its text alone."""
        return any(offer.reads_beside for offer in self.offers.values())

    @property
    def observes(self) -> bool:
        """Whether any offer, or the lens, looks at the hidden states between the layers."""
        return "lens" in self.grounding or any(offer.observes for offer in self.offers.values())

    def asked(self, extra_args: Mapping[str, object] | None) -> Offer | None:
        """The offer of a request, from the `extra_args` of its sampling parameters; None for the plain model.

        Raises:
            ValueError: it names something that is not offered.
        """
        given = (extra_args or {}).get(KEY, self.default)
        if given == PLAIN:
            return None
        if not isinstance(given, str) or given not in self.offers:
            raise ValueError(
                f"{KEY}: {shown(given)} is not offered by this server; offered: {PLAIN}, {', '.join(self.offers)}"
            )
        return self.offers[given]

    def check(self, extra_args: Mapping[str, object] | None) -> None:
        """Refuse a request from outside before it gets to the engine.

        Raises:
            ValueError: it names something that is not offered, or says what only the engine may say.
        """
        given = extra_args or {}
        reserved = [name for name in given if str(name).startswith(KEY) and name != KEY]
        if reserved == [LENS] and is_issued(given[LENS]):
            reserved = []
        if reserved:
            raise ValueError(f"{shown(reserved[0])} is not an argument of requests; {KEY!r} names the method")
        self.asked(extra_args)


def _grounding_parts(text: str) -> tuple[Part, ...]:
    """What is measured of mentions.

    Raises:
        ValueError: an unknown part, or one that is not measured inside vLLM.
    """
    parts = tuple(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    unknown = [part for part in parts if part not in SERVED_PARTS]
    if unknown:
        raise ValueError(f"--grounding {shown(unknown[0])} is not measured here; allowed: {', '.join(SERVED_PARTS)}")
    return tuple(part for wanted in parts for part in SERVED_PARTS if part == wanted)


def served_methods(text: str) -> tuple[Method, ...]:
    """The methods of an offer.

    Raises:
        ValueError: unknown methods or settings, or one that cannot run inside vLLM, with the reason.
    """
    methods = resolve_methods(text)
    for method in methods:
        reason = unserved_reason(method)
        if reason:
            raise ValueError(
                f"{method.name} cannot be served inside vLLM: {reason}; use wrap(model, processor, ...) instead"
            )
    contrasting = [method.name for method in methods if method.contrasts()]
    if len(contrasting) > 1:
        raise ValueError(f"{' and '.join(contrasting)} all contrast the logits of a step; keep one of them")
    whole = [method.name for method in methods if method.edits_attention() and method.whole_prompt is not None]
    if contrasting and whole:
        raise ValueError(
            f"{whole[0]} reads a prompt in one step, and {contrasting[0]} reads the last token of two prompts in a "
            "step of its own; serve one of them"
        )
    beside = [method.name for method in methods if method.reads_beside()]
    inside = [method.name for method in methods if acts_in_model(method) and method.name not in beside]
    if beside and inside:
        raise ValueError(
            f"{beside[0]} chooses heads in the model as it is, which beside {inside[0]} would take a reading of "
            "its own; serve one of them"
        )
    return methods


def unserved_reason(method: Method) -> str:
    """Why a method cannot run inside vLLM; empty where it can."""
    found = hooks_of(method)
    served = (*_SERVED, _LOOKS_AHEAD) if method.overrides("reads_ahead") else _SERVED
    unserved = [name for name in (*_UNSERVED, *found) if name in found and name not in served]
    if unserved:
        return _UNSERVED.get(unserved[0], f"nothing of vLLM's asks for {unserved[0]}")
    if method.edits_attention() and method.whole_prompt is not None and method.contrasts():
        return "its second branch must be read in one step, and vLLM reads the last token of both in a step of its own"
    if method.gate:
        return (
            "its gate asks for the distribution that a token was chosen from, which is gone when vLLM reads the token"
        )
    if "gradients" in method.needs:
        return "it needs gradients, and vLLM computes none"
    if not found:
        return "it acts nowhere"
    return ""
