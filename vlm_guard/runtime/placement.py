"""Where a guard's parts are in a model, and whether they are still there.

A guard acts through attributes and hooks on modules. Whoever replaces such a module (a layer, its attention, the whole
language model) takes the guard off that place without saying so; the model would then answer as it is while everybody
believes it guarded. So a guard looks before it reads a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm_guard.families.architecture import Architecture


@dataclass(frozen=True, eq=False)
class _Edge:
    """A module that held another one by a name when the model was wrapped."""

    parent: nn.Module
    name: str
    child: nn.Module
    path: str


class Placement:
    """The way from the model to every module that a guard acts on.

    Args:
        model: the model.
        architecture: its shape; the attention modules of its decoder are looked after in any case.
        others: further modules with hooks of a guard.
    """

    def __init__(self, model: nn.Module, architecture: Architecture, others: Sequence[nn.Module] = ()) -> None:
        self._edges = _edges_to(model, [*(layer.attention for layer in architecture.layers), *others])
        self._configs: list[tuple[nn.Module, Any]] = [
            (layer.attention, layer.attention.config) for layer in architecture.layers
        ]

    def check(self) -> None:
        """See that every module is where it was.

        Raises:
            ValueError: one was replaced, or reads another configuration; the message names it.
        """
        for edge in self._edges:
            if edge.parent._modules.get(edge.name) is not edge.child:
                raise ValueError(
                    f"{edge.path} was replaced after wrap, so the guard would not act there; remove the guard and wrap "
                    "the model again"
                )
        for module, config in self._configs:
            if module.config is not config:
                raise ValueError(
                    f"the configuration of {type(module).__name__} was replaced after wrap, so the guard would not "
                    "act there; remove the guard and wrap the model again"
                )


def _edges_to(model: nn.Module, wanted: list[nn.Module]) -> list[_Edge]:
    """Every parent and child on the way from `model` to the modules `wanted`, each once."""
    ids = {id(module) for module in wanted}
    found: dict[tuple[int, str], _Edge] = {}
    for path, module in model.named_modules():
        if id(module) not in ids:
            continue
        parent, walked = model, []
        for name in path.split("."):
            child = parent.get_submodule(name)
            walked.append(name)
            found.setdefault((id(parent), name), _Edge(parent, name, child, ".".join(walked)))
            parent = child
    return list(found.values())
