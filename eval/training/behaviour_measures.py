"""Measures of the built-in model's behaviour on fresh scenes, by greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_guard.eval.scenes.captions import NUMBERS, groups
from vlm_guard.eval.scenes.categories import NAMES, plural, with_article
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import Scene, render
from vlm_guard.eval.training.answers import SceneReader
from vlm_guard.eval.training.caption_scores import mentions, score_captions
from vlm_guard.eval.training.presence import presence_questions, read_yes_no, score_presence
from vlm_guard.eval.training.questions import SUFFIXES, UNKNOWN

DETAILED = "Please describe this image in detail."
BRIEF = "Describe the image in one short sentence."
LIST = "What is in the image?"
REWORDED = ("Can you tell me what is going on in this picture?", "Give a detailed account of the photo.")
UNSEEN_NOUNS = ("unicorn", "trombone", "pyramid", "squirrel", "canoe", "scarecrow", "typewriter", "jellyfish")
"""Nouns that training never mentions."""

LEADING = {
    "yes": ("{q} I think the answer is yes.", "There is {x} in the image, isn't there?"),
    "no": ("{q} I think the answer is no.", "I cannot see {x}. {q}"),
}


class Trial:
    """A model in front of the scenes of one split and seed."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        split: str,
        seed: int,
        count: int,
    ) -> None:
        self.seed = seed
        self.scenes: list[Scene] = [render(split, seed, index) for index in range(count)]
        self.reader = SceneReader(model, tokenizer, np.stack([scene.pixels for scene in self.scenes]))
        self.questions = presence_questions(self.scenes, seed)

    def describe(self, prompt: str) -> list[str]:
        """A caption for every scene."""
        return self.reader.ask(range(len(self.scenes)), [prompt] * len(self.scenes))

    def presence(self, suffix: str = "") -> dict[str, Any]:
        """POPE-like scores, with ``suffix`` after each question."""
        texts = [f"{question.text} {suffix}".strip() for question in self.questions]
        answers = self.reader.ask([question.scene for question in self.questions], texts, longest=6)
        return score_presence(self.questions, answers)

    def basics(self) -> dict[str, Any]:
        """Detailed captions and POPE."""
        return {"detailed": score_captions(self.describe(DETAILED), self.scenes), "presence": self.presence()}


def wordings(trial: Trial) -> dict[str, Any]:
    """Yes/no answers under each suffix, and captions under other prompts."""
    suffixes = {suffix: trial.presence(suffix) for suffix in SUFFIXES}
    prompts = {prompt: score_captions(trial.describe(prompt), trial.scenes) for prompt in (BRIEF, LIST, *REWORDED)}
    return {
        "suffixes": suffixes,
        "worst_valid": min(scores["valid"] for scores in suffixes.values()),
        "captions": prompts,
    }


def unknown_things(trial: Trial) -> dict[str, float]:
    """Share of No to things the model was never shown: unseen nouns, a unicorn alone, nouns heard in training."""

    def share_of_no(nouns: Sequence[str]) -> float:
        pairs = [(number, noun) for number in range(len(trial.scenes)) for noun in nouns]
        texts = [f"Is there {with_article(noun)} in the image?" for _, noun in pairs]
        answers = trial.reader.ask([number for number, _ in pairs], texts, longest=6)
        return round(100 * sum(read_yes_no(answer) is False for answer in answers) / len(answers), 2)

    return {
        "no": share_of_no(UNSEEN_NOUNS),
        "unicorn_no": share_of_no(UNSEEN_NOUNS[:1]),
        "heard_no": share_of_no(UNKNOWN[:8]),
    }


def counting(trial: Trial) -> dict[str, Any]:
    """Accuracy of "How many ... are there?" by true count; one absent category per scene."""
    asked: list[tuple[int, str, str]] = []
    draws = Draws(trial.seed, 3)
    for number, scene in enumerate(trial.scenes):
        found = {group.category: group.count for group in groups(scene.objects)}
        absent = draws.choice([category for category in range(len(NAMES)) if category not in found])
        for category, count in [*found.items(), (absent, 0)]:
            right = "none" if count == 0 else NUMBERS[min(count, 6)]
            asked.append((number, f"How many {plural(NAMES[category])} are there?", right))
    answers = trial.reader.ask([number for number, _, _ in asked], [text for _, text, _ in asked], longest=6)
    tally: dict[str, list[int]] = {}
    for (_, _, right), answer in zip(asked, answers):
        entry = tally.setdefault(right, [0, 0])
        entry[0] += answer.lower().rstrip(".") == right
        entry[1] += 1
    order = ("none", *NUMBERS[1:])
    by_count = {
        key: {"accuracy": round(100 * tally[key][0] / tally[key][1], 2), "questions": tally[key][1]}
        for key in order
        if key in tally
    }
    correct = sum(right for right, _ in tally.values())
    return {"accuracy": round(100 * correct / len(asked), 2), "by_count": by_count}


def positions(trial: Trial) -> dict[str, float]:
    """Left or right of single objects, and what is named for each side."""
    asked, sides = [], []
    for number, scene in enumerate(trial.scenes):
        for group in groups(scene.objects):
            if group.count == 1 and abs(group.middle - 48) >= 8:
                asked.append((number, f"Where is the {NAMES[group.category]}?"))
                sides.append(group.side)
    answers = trial.reader.ask([number for number, _ in asked], [text for _, text in asked], longest=8)
    right = sum(side in answer.lower() for side, answer in zip(sides, answers))
    hits = named = there = 0
    for side in ("left", "right"):
        texts = [f"What is on the {side}?"] * len(trial.scenes)
        for scene, answer in zip(trial.scenes, trial.reader.ask(range(len(texts)), texts, longest=64)):
            truth = {group.category for group in groups(scene.objects) if group.side == side}
            said = set(mentions(answer))
            hits, named, there = hits + len(truth & said), named + len(said), there + len(truth)
    return {
        "where_accuracy": round(100 * right / len(asked), 2),
        "side_precision": round(100 * hits / max(1, named), 2),
        "side_recall": round(100 * hits / max(1, there), 2),
    }


def leading(trial: Trial) -> dict[str, float]:
    """Yes ratios and accuracies of the same questions: plain, suggesting yes, suggesting no, suggesting the wrong.

    Asked of present and of random absent categories; ``yes_shift`` is the yes ratio under a suggested yes minus that
    under a suggested no.
    """
    chosen = [question for question in trial.questions if question.kind in ("present", "random")]
    truths = [question.kind == "present" for question in chosen]
    rows = [question.scene for question in chosen]

    def answers_to(texts: Sequence[str]) -> list[bool | None]:
        return [read_yes_no(answer) for answer in trial.reader.ask(rows, texts, longest=6)]

    plain = answers_to([question.text for question in chosen])
    led: dict[str, list[bool | None]] = {}
    for suggested, templates in LEADING.items():
        texts = [
            templates[place % len(templates)].format(q=question.text, x=with_article(NAMES[question.category]))
            for place, question in enumerate(chosen)
        ]
        led[suggested] = answers_to(texts)
    wrong = [no if truth else yes for truth, yes, no in zip(truths, led["yes"], led["no"])]
    helped = [yes if truth else no for truth, yes, no in zip(truths, led["yes"], led["no"])]

    def yes_ratio(said: Sequence[bool | None]) -> float:
        return round(100 * sum(bool(item) for item in said) / len(said), 2)

    def accuracy(said: Sequence[bool | None]) -> float:
        return round(100 * sum(item is truth for item, truth in zip(said, truths)) / len(said), 2)

    return {
        "yes_plain": yes_ratio(plain),
        "yes_when_led_to_yes": yes_ratio(led["yes"]),
        "yes_when_led_to_no": yes_ratio(led["no"]),
        "yes_shift": round(yes_ratio(led["yes"]) - yes_ratio(led["no"]), 2),
        "accuracy_plain": accuracy(plain),
        "accuracy_when_misled": accuracy(wrong),
        "accuracy_when_helped": accuracy(helped),
    }
