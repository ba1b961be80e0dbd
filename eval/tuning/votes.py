"""Which nouns of the captions are in their picture, by two votes of the plain model.

  self-check   logit(Yes) - logit(No) of "Is there a X in the image?"
  lens         the largest log-probability of X at the picture's own tokens

Both are centred, picture by picture, on nouns that other pictures' captions name, which cancels a model's leaning
towards yes. Nouns of its own plain caption are mostly present, those of other pictures mostly not: half way between the
means of the two lies the threshold, so that no label is needed. The votes rank settings; they do not measure CHAIR.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_guard.grounding import PromptLens, self_check
from vlm_guard.grounding.lens import VisualStates, spellings
from vlm_guard.grounding.readout import ModelReadout
from vlm_guard.guard import Guard

SELF_CHECK, LENS = "self_check", "lens"
FOREIGN = 6
"""So many nouns of other pictures each picture is asked about."""


@dataclass(frozen=True, kw_only=True)
class Votes:
    """What the plain model says about nouns and pictures.

    Attributes:
        kinds: the votes there are; families without visual tokens in their decoder have no lens.
        values: by vote and (picture, noun), centred.
        thresholds: by vote, above which a noun is present.
    """

    kinds: tuple[str, ...]
    values: Mapping[str, Mapping[tuple[int, str], float]]
    thresholds: Mapping[str, float]

    def present(self, kind: str, picture: int, noun: str) -> bool:
        """Whether a vote says that the picture shows it."""
        return self.values[kind][picture, noun] > self.thresholds[kind]


def foreign_nouns(own: Mapping[int, Sequence[str]], named: Mapping[int, set[str]]) -> dict[int, list[str]]:
    """For each picture some nouns that other pictures' plain captions name and no caption of its own does.

    Args:
        own: by picture the nouns of its plain caption.
        named: by picture the nouns of all its captions.
    """
    everything = sorted({noun for nouns in own.values() for noun in nouns})
    found = {}
    for picture in own:
        others = [noun for noun in everything if noun not in named[picture]]
        found[picture] = random.Random(picture).sample(others, min(FOREIGN, len(others)))
    return found


def collect_votes(
    guard: Guard,
    batches: Sequence[tuple[Sequence[int], Any]],
    own: Mapping[int, Sequence[str]],
    named: Mapping[int, set[str]],
    progress: Callable[[int], None] = lambda pictures: None,
) -> Votes:
    """Ask the plain model about every noun of every caption, each once.

    Args:
        guard: of the model; its methods stand aside.
        batches: the pictures' numbers and the inputs of `generate` that ask about them, on the model's device.
        own: by picture the nouns of its plain caption.
        named: by picture the nouns of all its captions.
        progress: told how many more pictures are done.

    Raises:
        ValueError: the captions name too little to compare with.
    """
    foreign = foreign_nouns(own, named)
    if not any(own.values()) or not any(foreign.values()):
        raise ValueError(
            "the plain model's captions name too few things to judge by; give more pictures, or a prompt that asks for "
            "a description"
        )
    kinds = (SELF_CHECK,) if guard.target.architecture.entry.cross_attention else (SELF_CHECK, LENS)
    raw: dict[str, dict[tuple[int, str], float]] = {kind: {} for kind in kinds}
    for numbers, inputs in batches:
        nouns = [[*sorted(named[number]), *foreign[number]] for number in numbers]
        # Layers that annotations have chosen (the profile's) are not for a choice without any.
        states = VisualStates.of(guard.target.architecture) if LENS in kinds else None
        answers = self_check(guard, inputs, nouns, states=states)
        lens = (
            None if states is None or not states.complete else PromptLens(states, ModelReadout.of(guard), len(numbers))
        )
        for row, number in enumerate(numbers):
            for noun, value in zip(nouns[row], answers[row], strict=True):
                raw[SELF_CHECK][number, noun] = value
                if lens is not None:
                    raw[LENS][number, noun] = lens.log_prob(row, spellings(noun, noun, _speller(guard)))
        progress(len(numbers))
    raw = {kind: values for kind, values in raw.items() if values}
    values = {kind: _centred(found, foreign) for kind, found in raw.items()}
    thresholds = {
        kind: _mean([found[picture, noun] for picture, nouns in own.items() for noun in nouns]) / 2
        for kind, found in values.items()
    }
    return Votes(kinds=tuple(values), values=values, thresholds=thresholds)


def _speller(guard: Guard) -> Callable[[str], list[int]]:
    tokenizer = guard.target.processor.tokenizer
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _centred(
    values: Mapping[tuple[int, str], float], foreign: Mapping[int, Sequence[str]]
) -> dict[tuple[int, str], float]:
    """Minus the mean of the picture's foreign nouns; of all of them where a picture has none."""
    overall = _mean([values[picture, noun] for picture, nouns in foreign.items() for noun in nouns])
    centres = {
        picture: _mean([values[picture, noun] for noun in nouns]) if nouns else overall
        for picture, nouns in foreign.items()
    }
    return {(picture, noun): value - centres[picture] for (picture, noun), value in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
