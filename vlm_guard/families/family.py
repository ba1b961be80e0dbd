"""What a model family is, in one declarative entry, and how the entry of a model is found.

Every file of `vlm_guard/families/known/` holds entries of related families; other packages offer theirs in the
entry-point group `vlm_guard.families.known`, or by `register_architecture`. A model without an entry is served by
`GENERIC`, which fits whatever sends its decoder attention through transformers' interface and marks images by
placeholder ids in `input_ids`.

An entry says only what differs from the generic family; the model table is made of the same entries.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from runpy import run_path

from vlm_guard.families.image_grids import PatchGrid, grid_of_inputs

KNOWN = Path(__file__).parent / "known"
ENTRY_POINT_GROUP = "vlm_guard.families.known"

_REGISTERED: dict[str, "ArchitectureEntry"] = {}


@dataclass(frozen=True, kw_only=True)
class ArchitectureEntry:
    """One model family.

    Attributes:
        family: the name people use.
        model_types: `config.model_type` of the whole model; several where they differ in nothing else.
        text_models: `model_type` of the text backbones it was tested with.
        zoo: names of the test models.
        note: what is special about it, for the model table.
        refused: why such models cannot be guarded; then nothing else counts.
        unbuilt: why the tests can build no model of it ("its ...").
        token_id_fields: fields of the configuration that hold the placeholder ids of images and videos; those of a
            part of it after a dot ("vision_config.image_token_id").
        marker_id_fields: fields of the configuration with the ids of markers around an image that the model embeds with
            it, so that a pass over them needs the image too.
        decoder: dotted path of the module with the decoder layers, where `model.get_decoder()` is not it.
        generator: dotted path of the inner language model, for families whose own `generate` hands embeddings to it.
        cross_attention: name of the attention module in layers that read images by cross-attention; their keys are
            all visual, and self-attention then has no visual keys.
        patch_grid: how many rows and columns of visual tokens each image has.
        no_grid: why its visual tokens form no grid ("it ..."); then `patch_grid` does not count.
        vision_tower: dotted path of the image encoder, where `model.get_encoder(modality="image")` is not it.
        no_tower: why there is no usable image encoder ("it ...").
        packed_towers: `model_type` of image encoders that read the patches of all images as one sequence.
    """

    family: str
    model_types: tuple[str, ...]
    text_models: tuple[str, ...] = ()
    zoo: tuple[str, ...] = ()
    note: str = ""
    refused: str = ""
    unbuilt: str = ""
    token_id_fields: tuple[str, ...] = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    marker_id_fields: tuple[str, ...] = ()
    decoder: str = ""
    generator: str = ""
    cross_attention: str = ""
    patch_grid: PatchGrid = grid_of_inputs
    no_grid: str = ""
    vision_tower: str = ""
    no_tower: str = ""
    packed_towers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.family or (not self.model_types and self.family != "any other"):
            raise ValueError(f"an architecture entry needs a family and its model_types, given {self!r}")


GENERIC = ArchitectureEntry(family="any other", model_types=())
"""Serves every model type without an entry of its own."""


def register_architecture(entry: ArchitectureEntry) -> ArchitectureEntry:
    """Make an entry known; a model type that already has one is given to the new entry.

    Raises:
        TypeError: not an entry.
    """
    if not isinstance(entry, ArchitectureEntry):
        raise TypeError(f"register_architecture needs an ArchitectureEntry, given {type(entry).__name__}")
    for model_type in entry.model_types:
        _REGISTERED[model_type] = entry
    return entry


def architecture_entries() -> list[ArchitectureEntry]:
    """All entries, each once, sorted by family; those that serve no model type any more are left out."""
    known = _shipped() | _REGISTERED
    return sorted(dict.fromkeys(known.values()), key=lambda entry: entry.family.lower())


def entry_of(model_type: str) -> ArchitectureEntry:
    """The entry of a `config.model_type`; `GENERIC` where there is none."""
    return (_shipped() | _REGISTERED).get(model_type, GENERIC)


def entries_in(folder: Path) -> dict[str, ArchitectureEntry]:
    """The entries of the files of a folder, by model type.

    Raises:
        ValueError: two of them claim the same model type.
    """
    found: dict[str, ArchitectureEntry] = {}
    for path in sorted(folder.glob("[!_]*.py")):
        for entry in (value for value in _names_of(path).values() if isinstance(value, ArchitectureEntry)):
            for model_type in entry.model_types:
                if model_type in found:
                    raise ValueError(f"{path.name} has a second entry for the model type {model_type!r}")
                found[model_type] = entry
    return found


def _names_of(path: Path) -> dict[str, object]:
    """What a file defines; a file of this package is imported under its own name."""
    if path.parent == KNOWN:
        return vars(import_module(f"vlm_guard.families.known.{path.stem}"))
    return run_path(str(path))


@cache
def _shipped() -> dict[str, ArchitectureEntry]:
    """By model type, the entries of this package's files, then those of entry points."""
    found = entries_in(KNOWN)
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        entry = point.load()
        found.update(dict.fromkeys(entry.model_types, entry))
    return found
