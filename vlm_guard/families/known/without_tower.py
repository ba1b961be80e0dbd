"""Families that feed patches or codes of a picture straight to their decoder."""

from vlm_guard.families.family import ArchitectureEntry

FUYU = ArchitectureEntry(
    family="Fuyu",
    model_types=("fuyu",),
    text_models=("persimmon",),
    zoo=("fuyu",),
    note="no vision tower",
    no_grid="gives its patches without the shape of the picture",
    no_tower="it feeds patches straight to its decoder",
)
CHAMELEON = ArchitectureEntry(
    family="Chameleon",
    model_types=("chameleon",),
    text_models=("chameleon",),
    zoo=("chameleon",),
    note="no vision tower",
    no_tower="it feeds codes of a picture straight to its decoder",
)
