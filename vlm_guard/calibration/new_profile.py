"""A profile for a model that has been measured."""

from torch import nn

from vlm_guard.families.architecture import unwrap
from vlm_guard.families.profiles import Fact, Profile, identity_of


def new_profile(model: nn.Module, name: str, facts: dict[str, Fact], earlier: Profile | None = None) -> Profile:
    """A profile for models of this family and size; what `earlier` knows beside `facts` stays."""
    known, settings = ({}, {}) if earlier is None else (earlier.facts, earlier.settings)
    return Profile(name=name, match=identity_of(unwrap(model).config), facts=known | facts, settings=settings)
