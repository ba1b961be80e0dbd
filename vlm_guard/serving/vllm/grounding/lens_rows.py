"""Hidden states of the picture's tokens, kept while vLLM reads a prompt."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_guard.grounding.lens import VisualStates
from vlm_guard.serving.vllm.attention.observed_rows import Entering

KEPT = 64
"""So many prompts are kept until somebody asks for them; the oldest gives way."""


@dataclass(eq=False)
class PromptStates:
    """One prompt.

    Attributes:
        layers: the layers that the lens reads; the depth for what leaves the last one.
        places: the prompt's T visual tokens.
        grids: (rows, columns) of each picture's tokens in order; none where that is not known.
        parts: by layer the states [t, D] of one piece of the prompt after another.
    """

    layers: tuple[int, ...]
    places: list[int]
    grids: Sequence[Sequence[int]] = ()
    parts: dict[int, list[Tensor]] = field(default_factory=dict)

    def begin(self) -> None:
        """The prompt is read from its first token on."""
        self.parts = {layer: [] for layer in self.layers}

    def states(self) -> VisualStates | None:
        """What was kept; None where the prompt has not been read to its last visual token, or has none."""
        found = {layer: torch.cat(parts) for layer, parts in self.parts.items() if parts}
        if not self.places or any(len(found.get(layer, ())) != len(self.places) for layer in self.layers):
            return None
        rows = torch.zeros(len(self.places), dtype=torch.long)
        return VisualStates(layers=self.layers, visual_token_ids=(), rows=rows, found=found)


class KeptPrompts(OrderedDict[str, PromptStates]):
    """The prompts of an engine by their keys, the latest last."""

    def keep(self, key: str, prompt: PromptStates) -> None:
        """Keep a prompt."""
        self[key] = prompt
        while len(self) > KEPT:
            self.popitem(last=False)


_KEPT: dict[str, KeptPrompts] = {}


def kept_prompts(engine: str) -> KeptPrompts:
    """The prompts that an engine of this process keeps, by the engine's `instance_id`."""
    return _KEPT.setdefault(engine, KeptPrompts())


@dataclass(frozen=True, eq=False)
class LensRows:
    """Consecutive rows of a step that belong to a prompt whose states are kept.

    Attributes:
        prompt: where they go.
        rows: [t] long, the visual tokens among the rows of the step.
    """

    prompt: PromptStates
    rows: Tensor

    def show(self, layer: int, entering: Entering) -> None:
        """Take in what enters a layer; see `LooksBetweenLayers`."""
        if layer in self.prompt.parts and len(self.rows):
            self.prompt.parts[layer].append(entering(self.rows).detach())


@dataclass(frozen=True, eq=False)
class LensPlanner:
    """Finds the rows of a step whose states are kept.

    Attributes:
        layers: the layers that the lens reads.
        visual_token_ids: of the model.
        kept: the prompts of the engine.
    """

    layers: tuple[int, ...]
    visual_token_ids: tuple[int, ...]
    kept: KeptPrompts

    def rows(self, key: str, ids: Sequence[int], grids: Sequence[Sequence[int]], where: "StepPart") -> LensRows | None:
        """The rows of one request; None behind its prompt.

        Args:
            key: of the prompt.
            ids: the prompt, its placeholders expanded.
            grids: see `PromptStates`.
            where: what of it this step reads.
        """
        if where.offset >= len(ids):
            return None
        if where.offset == 0:
            places = [place for place, token in enumerate(ids) if token in self.visual_token_ids]
            prompt = PromptStates(self.layers, places, grids)
            prompt.begin()
            self.kept.keep(key, prompt)
        found = self.kept.get(key)
        if found is None:  # given up for younger ones in the middle of its prompt
            return None
        start, stop = where.offset, where.offset + where.count
        rows = [place - start + where.first for place in found.places if start <= place < stop]
        return LensRows(found, torch.tensor(rows, dtype=torch.long, device=where.device))


@dataclass(frozen=True, kw_only=True)
class StepPart:
    """What of a request a step reads.

    Attributes:
        first: its first row in the step. count: how many. offset: how many of its tokens were read before.
        device: of the step's rows.
    """

    first: int
    count: int
    offset: int
    device: torch.device
