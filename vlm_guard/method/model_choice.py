"""`auto`: the method that suits the model, by its profile, or a default that every model takes.

`vlm-guard tune MODEL` measures which method and setting suits a model and writes it into the profile. Where nobody has
measured, the default is one half of PAI: the scores of visual tokens are raised in the rows
of the answer. It needs no calibration, no processor, no second branch and no shape of picture, so no family refuses it.
Its gain of 0.3 lies between the 0.2 of PAI's released command line and the 0.5 said to be the paper's for LLaVA-1.5; of
0.2, 0.3 and 0.4 it is the largest that cost the built-in model no recall (docs/methods.md). Families that read pictures
in cross-attention layers have no visual keys in self-attention; there the default is the other half, the contrast with
the prompt without its picture.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlm_guard.method.base import Method

if TYPE_CHECKING:
    from vlm_guard.families.architecture import Architecture
    from vlm_guard.families.profiles import Profile

AUTO = "auto"
FACT = "auto"
"""The profile's fact that holds the choice, a line such as "pai:gain=0.4" (`vlm_guard.method.method_text`)."""

DEFAULT = "pai:gain=0.3,guidance=1"
CROSS_ATTENTION_DEFAULT = "pai:gain=0"
_LAYERS_OF_DEFAULT = 2
"""PAI begins with this layer; a decoder that ends before it is edited in all of its layers."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice(Method):
    """The method that the model's profile chooses, or a default that every model takes; see `vlm-guard tune`."""

    name: ClassVar[str] = AUTO
    title: ClassVar[str] = "the model's choice"
    paper: ClassVar[str] = "chosen by vlm-guard tune, else the attention half of PAI"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What `auto` means for a model.

    Attributes:
        text: the methods with their settings, in one line.
        reason: who chose it.
    """

    text: str
    reason: str


def choice_of(architecture: "Architecture", profile: "Profile | None") -> Choice:
    """What `auto` stands for on this model.

    Raises:
        ValueError: the profile holds something else than a line of text.
    """
    fact = None if profile is None else profile.facts.get(FACT)
    if profile is not None and fact is not None:
        if not isinstance(fact.value, str):
            raise ValueError(
                f"profile {profile.name}: the fact {FACT!r} must be a line such as 'pai:gain=0.4', not "
                f"{fact.value!r}; run 'vlm-guard tune MODEL' again, or take the fact out"
            )
        return Choice(text=fact.value, reason=f"profile {profile.name} ({fact.source})")
    if architecture.entry.cross_attention:
        return Choice(text=CROSS_ATTENTION_DEFAULT, reason="the default where pictures are read by cross-attention")
    layers = "" if architecture.depth > _LAYERS_OF_DEFAULT else ",layers=all"
    return Choice(text=DEFAULT + layers, reason="the default; 'vlm-guard tune MODEL' chooses for the model")
