"""What a method found out about a picture, in kinds that can be drawn without knowing the method.

`Method.findings` returns them after an answer; the demo draws them below its heat-maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from vlm_guard.method.state import GenerationState


@dataclass(frozen=True, kw_only=True, eq=False)
class FindingsCall:
    """What `Method.findings` sees, after an answer.

    Attributes:
        state: the generation, of which the first row is asked about; its `memory` is where methods keep things.
        kept: what the method kept of this `generate` call apart from any decoder layer, `guard.findings(name)`.
        layers: the decoder layers whose attention the method may edit, ascending.
    """

    state: "GenerationState"
    kept: SimpleNamespace
    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """Something to tell or draw. Itself it is words only.

    Attributes:
        title: a few words, with the method's name.
        text: one or two sentences on what is seen.
    """

    title: str
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class MarkedTokens(Finding):
    """Visual tokens that a method singled out, drawn as crossed-out patches.

    Attributes:
        marked: [V] bool, over the visual tokens of the first row.
        name: what they are, such as "visual sink tokens".
    """

    marked: "NDArray[np.bool_]"
    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class MarkedHeads(Finding):
    """Heads that a method singled out, drawn as a table of layers and heads.

    Attributes:
        marked: by decoder layer [H] bool.
    """

    marked: "Mapping[int, NDArray[np.bool_]]"


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureMap(Finding):
    """A number for every patch, drawn as a heat-map over the picture.

    Attributes:
        values: [rows, columns] numbers from 0 on.
    """

    values: "NDArray[np.floating[Any]]"


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplacedPicture(Finding):
    """Another picture that the model was shown.

    Attributes:
        picture: the picture.
    """

    picture: "Image.Image" = field(repr=False)
