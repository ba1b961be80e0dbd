"""POPE-like questions about scenes: who is asked about, and how the answers are scored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vlm_guard.eval.scenes.categories import NAMES, with_article
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import Scene
from vlm_guard.eval.scenes.world import SPLITS, draw_categories

KINDS = ("random", "popular", "adversarial")
_LAW_SEED = 90_001


@dataclass(frozen=True, kw_only=True)
class PresenceQuestion:
    """Scene number, category index, and why it is asked: ``present`` or one of :data:`KINDS`."""

    scene: int
    category: int
    kind: str

    @property
    def text(self) -> str:
        """POPE's wording."""
        return f"Is there {with_article(NAMES[self.category])} in the image?"


@cache
def co_occurrence(scenes: int = 20_000) -> np.ndarray:
    """Estimate of P(column present | row present) under the training law, float (80, 80)."""
    counts = np.zeros((len(NAMES), len(NAMES)))
    draws = Draws(_LAW_SEED)
    for _ in range(scenes):
        categories = draw_categories(draws, SPLITS["common"])[1]
        counts[np.ix_(categories, categories)] += 1
    return counts / np.maximum(1, np.diag(counts))[:, None]


def presence_questions(scenes: Sequence[Scene], seed: int, pairs: int = 3) -> list[PresenceQuestion]:
    """Up to three present categories per scene and as many absent ones of each kind.

    Absent ones are random; or the most frequent in these scenes; or those that most often come with what is present.
    """
    draws = Draws(_LAW_SEED, seed)
    together = co_occurrence()
    frequency = np.zeros(len(NAMES))
    for scene in scenes:
        frequency[sorted(scene.present)] += 1
    out = []
    for number, scene in enumerate(scenes):
        present = sorted(scene.present)
        absent = [category for category in range(len(NAMES)) if category not in scene.present]
        count = min(pairs, len(present))
        if not count:
            continue
        tempting = together[present].max(0)
        asked = {
            "present": draws.sample(present, count),
            "random": draws.sample(absent, count),
            "popular": sorted(absent, key=lambda category: -frequency[category])[:count],
            "adversarial": sorted(absent, key=lambda category: -tempting[category])[:count],
        }
        for kind, categories in asked.items():
            out += [PresenceQuestion(scene=number, category=category, kind=kind) for category in categories]
    return out


def read_yes_no(answer: str) -> bool | None:
    """True for an answer that begins with yes, False for no, None for anything else."""
    word = re.match(r"\W*(yes|no)\b", answer, re.I)
    return None if word is None else word.group(1).lower() == "yes"


def score_presence(questions: Sequence[PresenceQuestion], answers: Sequence[str]) -> dict[str, object]:
    """Percentages per kind of absent category: accuracy, F1 of yes, yes ratio; and valid answers overall.

    An answer that is neither yes nor no counts as wrong and as no.
    """
    said = [read_yes_no(answer) for answer in answers]
    result: dict[str, object] = {
        "questions": len(questions),
        "valid": round(100 * sum(item is not None for item in said) / len(said), 2),
    }
    for kind in KINDS:
        chosen = [(q.kind == "present", a) for q, a in zip(questions, said) if q.kind in ("present", kind)]
        right_yes = sum(truth and bool(answer) for truth, answer in chosen)
        yes = sum(bool(answer) for _, answer in chosen)
        truths = sum(truth for truth, _ in chosen)
        correct = sum(answer is not None and answer == truth for truth, answer in chosen)
        result[kind] = {
            "accuracy": round(100 * correct / len(chosen), 2),
            "f1": round(200 * right_yes / (yes + truths), 2) if yes + truths else 0.0,
            "yes_ratio": round(100 * yes / len(chosen), 2),
        }
    return result
