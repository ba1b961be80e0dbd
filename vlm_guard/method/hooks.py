"""The hooks of a method, and what each of them implies: the only place where that is said.

Everything that has to know it asks here: what has to be followed while the model runs, what means nothing where images
are read by cross-attention, whether two branches may share the beginning of a prompt, whether a step can be compiled.
"""

from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, Any, Literal

from vlm_guard.method.base import Method, Station

if TYPE_CHECKING:
    from vlm_guard.method.base import Sign


@dataclass(frozen=True, kw_only=True)
class Hook:
    """What a hook implies.

    Attributes:
        station: the station that a method with this hook acts at; None for one that only helps the others.
        before_logits: whether it acts or looks inside the model or before it, not at its logits.
        in_model: whether it runs inside the model's forward passes, apart from their logits.
        whole_prompt: whether a prompt must be read from its first token on for it: never, only where the method edits
            the branch that is read, or always.
        per_step: whether it runs in every decode step.
    """

    station: Station | None
    before_logits: bool = True
    in_model: bool = True
    whole_prompt: Literal["never", "own branch", "always"] = "never"
    per_step: bool = False


HOOKS: dict[str, Hook] = {
    "edit_inputs": Hook(station="inputs", in_model=False),
    "begin_forward": Hook(station=None, whole_prompt="always"),
    "begin_vision": Hook(station="vision", whole_prompt="always"),
    "observe_vision": Hook(station="vision", whole_prompt="always"),
    "edit_vision": Hook(station="vision", whole_prompt="always"),
    "observe_hidden": Hook(station="hidden", whole_prompt="own branch"),
    "edit_hidden": Hook(station="hidden", whole_prompt="always", per_step=True),
    "edit_attention": Hook(station="attention", per_step=True),
    "contrast_branch": Hook(station="logits", before_logits=False, in_model=False),
    "combine_logits": Hook(station="logits", before_logits=False, in_model=False, per_step=True),
    "read_out": Hook(station="logits", before_logits=False, in_model=False, per_step=True),
    "combine_read_out": Hook(station="logits", before_logits=False, in_model=False, per_step=True),
    "combine_layers": Hook(station="logits", before_logits=False, in_model=False, per_step=True),
    "edit_logits": Hook(station="logits", before_logits=False, in_model=False, per_step=True),
    "search": Hook(station="logits", before_logits=False, in_model=False, per_step=True),
}


def hooks_of(method: Method | type[Method]) -> dict[str, Hook]:
    """The hooks that a method defines."""
    return {name: hook for name, hook in HOOKS.items() if method.overrides(name)}


def takes_gate(method: Method | type[Method]) -> bool:
    """Whether there are single steps at which the method could be left out."""
    return not method.overrides("search") and any(hook.per_step for hook in hooks_of(method).values())


def offered_options(method: type[Method]) -> "tuple[Field[Any], ...]":
    """The options that people are offered: those of the method, with a gate only where it can have one."""
    return tuple(item for item in method.options() if item.name != "gate" or takes_gate(method))


def acts_before_logits(method: Method | type[Method]) -> bool:
    """Whether the method acts anywhere but at the logits."""
    return any(hook.before_logits for hook in hooks_of(method).values())


def acts_in_model(method: Method | type[Method]) -> bool:
    """Whether the method looks or acts inside the model's forward passes."""
    return any(hook.in_model for hook in hooks_of(method).values())


def needs_whole_prompt(method: Method | type[Method], side: "Sign") -> bool:
    """Whether the branch `side` of a prompt must be read from its first token on for this method."""
    own = method.edited_branch == side
    return any(
        hook.whole_prompt == "always" or (hook.whole_prompt == "own branch" and own)
        for hook in hooks_of(method).values()
    )
