"""The lens: what the picture's own tokens say when the output embeddings read them (arXiv 2410.02762).

For a visual token j and the hidden state h_l[j] that enters decoder layer l (l = depth: that leaves the last one),

    log p_l[j] = log softmax(head(norm(h_l[j])))      over the vocabulary,
    lens(v)    = max over the chosen layers l and the row's visual tokens j of log p_l[j][v].

A word that names something in the picture is predicted, somewhere, by one of the picture's patches. Hidden states of
the chosen layers are kept while a prompt is read; the product with the output embeddings is made in blocks of tokens
and reduced at once to the largest value of every vocabulary entry, so that the table of all tokens, layers and words
never exists.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlm_guard.families.architecture import Architecture
from vlm_guard.families.profiles import Profile
from vlm_guard.grounding.readout import Readout
from vlm_guard.method.visual_tokens import visual_mask

BLOCK = 2**23
"""So many logits are held at once, and as many log-probabilities."""

LAYERS = 4
"""By default so many states are read: what enters the decoder, what leaves it, and between."""


LENS_FACT = "grounding_lens_layers"
"""The fact of a profile that says which states of a model are worth reading."""


def lens_layers(
    architecture: Architecture, wanted: Sequence[int] | None = None, profile: Profile | None = None
) -> tuple[int, ...]:
    """The states that the lens reads: numbers of layers, and the depth for what leaves the last one.

    Args:
        architecture: of the model.
        wanted: the layers to read; by default those of the profile, and without any `LAYERS` of them, evenly from the
            first to the last that has all tokens.
        profile: of the model.

    Raises:
        ValueError: the family has no visual tokens among its decoder's, or a layer cannot be read.
    """
    if architecture.entry.cross_attention:
        raise ValueError(
            f"the lens reads visual tokens out of the decoder, and {architecture.model_type} keeps the picture outside "
            'of it (cross-attention); take the self-check alone: Grounding(parts=("self_check",))'
        )
    partial_layers = {entry.index for entry in architecture.layers if entry.last_rows_only}
    # The layer in front of one that computes only the last rows still has them all.
    last = architecture.depth if not partial_layers else min(partial_layers)
    known = None if wanted is not None or profile is None else profile.value(LENS_FACT)
    if known is not None:
        wanted = known if isinstance(known, list) else [known]
    if wanted is None:
        return tuple(sorted({round(last * step / (LAYERS - 1)) for step in range(LAYERS)}))
    if not wanted or not all(type(layer) is int and 0 <= layer <= last for layer in wanted):
        origin = "" if known is None or profile is None else f" ({LENS_FACT} of profile {profile.name!r})"
        raise ValueError(f"lens layers are {list(wanted)}{origin}; allowed are 0 (entering the first layer) to {last}")
    return tuple(sorted(set(wanted)))


@dataclass(kw_only=True, eq=False)
class VisualStates:
    """Hidden states of the visual tokens of a batch of prompts, kept while the prompts are read.

    Attributes:
        layers: which are kept, see `lens_layers`.
        rows: [T] the prompt of each visual token, prompt by prompt.
        found: by layer [T, D]; empty before the prompts are read.
    """

    layers: tuple[int, ...]
    visual_token_ids: tuple[int, ...]
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    found: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, architecture: Architecture, layers: Sequence[int] | None = None, profile: Profile | None = None
    ) -> "VisualStates":
        """For a model, with nothing in it yet; the arguments are those of `lens_layers`.

        Raises:
            ValueError: the model's visual tokens cannot be read.
        """
        chosen = lens_layers(architecture, layers, profile)
        return cls(layers=chosen, visual_token_ids=architecture.visual_token_ids)

    @property
    def complete(self) -> bool:
        """Whether the prompts were read."""
        return bool(self.found)

    @contextmanager
    def recording(self, architecture: Architecture, input_ids: Tensor) -> Iterator[None]:
        """Inside, the next passes over `input_ids` [B, P] are looked at until all visual tokens have been read."""
        visual = visual_mask(input_ids, self.visual_token_ids).cpu()
        self.rows, self.found = visual.nonzero()[:, 0], {}
        if not len(self.rows):
            yield
            return
        recorder = _Recorder(self, architecture, visual)
        try:
            yield
        finally:
            recorder.stop()


class _Recorder:
    """Hooks on decoder layers that take the visual tokens' states out of passes over a prompt.

    Args:
        states: where they go.
        architecture: of the model.
        visual: [B, P] bool on the CPU.
    """

    def __init__(self, states: VisualStates, architecture: Architecture, visual: Tensor) -> None:
        self._states, self._visual = states, visual
        self._end = int(visual.any(0).nonzero().max()) + 1
        self._read = dict.fromkeys(states.layers, 0)
        self._parts: dict[int, list[Tensor]] = {layer: [] for layer in states.layers}
        self._pieces: list[tuple[int, int]] = []
        modules, last = architecture.decoder_layers, lens_layers(architecture)[-1]
        self._hooks = [
            modules[layer].register_forward_pre_hook(partial(self._enter, layer), with_kwargs=True)
            for layer in states.layers
            if layer < last
        ]
        if last in self._parts:
            # What leaves the layer in front of it: some models drop rows before the next one is entered.
            self._hooks.append(modules[last - 1].register_forward_hook(partial(self._leave, last)))

    def stop(self) -> None:
        """Look at no more passes."""
        self._remove()
        if self._parts and all(read >= self._end for read in self._read.values()):
            order = self._visual.nonzero()
            # A prompt read in pieces gives the tokens of all rows piece by piece; they are kept row by row.
            placed = torch.cat([order[(order[:, 1] >= a) & (order[:, 1] < b)] for a, b in self._pieces])
            sort = (placed[:, 0] * self._visual.shape[1] + placed[:, 1]).argsort()
            self._states.found = {
                layer: torch.cat(parts)[sort.to(parts[0].device)] for layer, parts in self._parts.items()
            }
        self._parts = {}

    def _remove(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _enter(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._take(layer, args[0] if args else kwargs["hidden_states"])

    def _leave(self, layer: int, module: nn.Module, args: tuple, output: Any) -> None:
        self._take(layer, output[0] if isinstance(output, tuple) else output)

    def _take(self, layer: int, hidden: Tensor) -> None:
        start = self._read[layer]
        if start >= self._end:
            return
        stop = start + hidden.shape[1]
        if layer == self._states.layers[0]:
            self._pieces.append((start, stop))
        wanted = self._visual[:, start:stop]
        # Beams and returned sequences repeat each prompt; the first of them stands for all.
        repeats = hidden.shape[0] // self._visual.shape[0]
        self._parts[layer].append(hidden[::repeats, : wanted.shape[1]][wanted.to(hidden.device)].detach())
        self._read[layer] = stop
        if all(read >= self._end for read in self._read.values()):
            # Decoding goes on without any of these hooks.
            self._remove()


class PromptLens:
    """What the visual tokens of a batch of prompts say.

    Args:
        states: hidden states, kept while the prompts were read.
        readout: of the model.
        batch: B, the number of prompts.
        watched: for each prompt the token ids whose log-probabilities are kept patch by patch; none by default.

    Attributes:
        best: [B, V] float32, the largest log-probability of each vocabulary entry over layers and visual tokens; minus
            infinity for a row without any.
        rows: [T] the prompt of each visual token.
    """

    def __init__(
        self, states: VisualStates, readout: Readout, batch: int, watched: Sequence[Collection[int]] = ()
    ) -> None:
        if not states.complete:
            raise ValueError(
                "no hidden states of visual tokens were kept: the prompts have not been read, or have none"
            )
        self._readout = readout
        self.rows = states.rows
        # All layers at once, [L, T, D]; they may lie on several devices.
        found = [states.found[layer] for layer in states.layers]
        self._normed = readout.normed(torch.stack([state.to(found[0].device) for state in found]))
        self._places = [{token: place for place, token in enumerate(sorted(ids))} for ids in watched]
        self._patches: dict[int, list[Tensor]] = {}
        self.best = self._reduce(batch)

    def log_prob(self, row: int, spellings: Sequence[Sequence[int]]) -> float:
        """The lens of a word: of its best spelling, the mean over that spelling's tokens.

        Args:
            row: the prompt.
            spellings: token ids of the word, spelled in one or more ways.
        """
        return max(float(self.best[row, list(ids)].mean()) for ids in spellings)

    def patch_log_probs(self, row: int, spellings: Sequence[Sequence[int]]) -> Tensor:
        """[n] of a prompt's n visual tokens: the largest log-probability over layers of the word's best spelling.

        Raises:
            ValueError: a token of the word is not watched in this prompt, or the prompt has no visual tokens.
        """
        best = max(spellings, key=lambda ids: float(self.best[row, list(ids)].mean()))
        places = self._places[row] if row < len(self._places) else {}
        unknown = [token for token in best if token not in places]
        if unknown or row not in self._patches:
            raise ValueError(f"patch by patch nothing is kept of token {unknown[0] if unknown else best} in row {row}")
        kept = torch.cat(self._patches[row], 1)
        return kept[..., [places[token] for token in best]].mean(-1).amax(0)

    def _reduce(self, batch: int) -> Tensor:
        best: Tensor | None = None
        for row, start, stop in self._blocks():
            # All layers in one product: many small ones take longer.
            logits = self._readout.logits(self._normed[:, start:stop].flatten(0, 1))
            if best is None:
                best = torch.full((batch, logits.shape[1]), -math.inf)
            # In one operation: a logsumexp and a difference go over the table more often.
            log_probs = logits.log_softmax(-1)
            torch.maximum(best[row], log_probs.amax(0).cpu(), out=best[row])
            if row < len(self._places) and self._places[row]:
                kept = log_probs[:, list(self._places[row])].view(len(self._normed), stop - start, -1)
                self._patches.setdefault(row, []).append(kept.cpu())
        if best is None:
            raise ValueError("the lens has no layer to read")
        return best

    def _blocks(self) -> Iterator[tuple[int, int, int]]:
        """(row, first visual token, behind the last) of blocks that belong to one prompt each."""
        size = max(1, BLOCK // (self._readout.width * len(self._normed)))
        start = 0
        while start < len(self.rows):
            row = int(self.rows[start])
            stop = start + int((self.rows[start:] == row).sum())
            for begin in range(start, stop, size):
                yield row, begin, min(stop, begin + size)
            start = stop


Spell = Callable[[str], list[int]]


def spellings(text: str, noun: str, spell: Spell, generated: Sequence[int] = ()) -> list[list[int]]:
    """The ways a word may stand among a model's tokens: as it was generated, and in its bare form.

    Args:
        text: as the answer spells it.
        noun: its singular.
        spell: from text to token ids, without special tokens.
        generated: the ids that spelled it in the answer.
    """
    ways = [list(generated)] if generated else []
    ways += [spell(form) for word in (text, noun) for form in (f" {word}", word)]
    return [way for index, way in enumerate(ways) if way and way not in ways[:index]]
