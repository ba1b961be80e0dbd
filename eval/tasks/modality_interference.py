"""Modality interference: does an irrelevant image or text change the answer? (arXiv 2505.19616)

A multiple-choice question that one modality suffices for is asked as it is and with an irrelevant other one. The
loss of accuracy is the interference.

`--data mc:FILE` gives the questions (`vlm_guard.eval.tasks.shared.multiple_choice` says how); a record with the field
"decided_by": "text" is one that its text decides and whose picture is beside the point. Every question needs a picture.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlm_guard.eval.data.word_lists import read_word_list
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.shared.metric import Better, Column, Counts, Metric, share
from vlm_guard.eval.tasks.shared.multiple_choice import ChoiceRecord, choice_prompt, chosen_option
from vlm_guard.eval.tasks.shared.received import Name, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting

if TYPE_CHECKING:
    from vlm_guard.eval.data.datasets import EvaluationData


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """One multiple-choice question.

    Attributes:
        question: the question.
        options: from letter to the option's text.
        answer: letter of the right option.
        image: the picture; None for a question that needs none.
        context: text put in front of the question.
    """

    question: str
    options: Mapping[str, str]
    answer: str
    image: Image.Image | None = None
    context: str = ""

    def __post_init__(self) -> None:
        if self.answer not in self.options:
            raise ValueError(f"the answer {self.answer!r} is none of the options {', '.join(self.options)}")

    @property
    def prompt(self) -> str:
        """The question as it is put to the model: context, question, one line per option."""
        asked = choice_prompt(self.question, self.options)
        return f"{self.context}\n{asked}" if self.context else asked


def _wrong_options(question: MultipleChoice) -> list[str]:
    return [text for letter, text in question.options.items() if letter != question.answer]


def add_unrelated_text(question: MultipleChoice, generator: random.Random, sentences: int = 10) -> MultipleChoice:
    """With sentences in front that have nothing to do with anything, drawn from seven kinds."""
    kinds = [entry for entry in read_word_list("unrelated_sentences.json").values() if isinstance(entry, list)]
    pool = [sentence for kind in kinds for sentence in kind]
    return replace(question, context=" ".join(generator.sample(pool, sentences)))


def add_related_text(
    question: MultipleChoice, generator: random.Random, facts: Mapping[str, str] | None = None
) -> MultipleChoice:
    """With a sentence in front about a wrong option: a fact where one is given, else a claim that it is shown.

    Args:
        question: the question.
        generator: source of the choice of the wrong option.
        facts: a sentence about an option, by the option's text.
    """
    wrong = generator.choice(_wrong_options(question))
    return replace(question, context=(facts or {}).get(wrong, f"This picture shows {wrong}."))


def _plain(colour: str) -> Callable[[MultipleChoice, random.Random], MultipleChoice]:
    def perturb(question: MultipleChoice, generator: random.Random) -> MultipleChoice:
        size = question.image.size if question.image is not None else (336, 336)
        return replace(question, image=Image.new("RGB", size, colour))

    return perturb


def add_noise_image(question: MultipleChoice, generator: random.Random) -> MultipleChoice:
    """With a picture of uniform noise, of the size of the question's picture or 336 x 336.

    The paper takes a random photo here; for that, give the questions photos and use `switched_image`.
    """
    size = question.image.size if question.image is not None else (336, 336)
    return replace(question, image=Image.frombytes("RGB", size, generator.randbytes(3 * size[0] * size[1])))


def switch_images(questions: Sequence[MultipleChoice], generator: random.Random) -> list[MultipleChoice]:
    """Every question with the picture of another one.

    Raises:
        ValueError: there are fewer than two questions.
    """
    if len(questions) < 2:
        raise ValueError("switching images takes at least two questions")
    order = list(range(len(questions)))
    generator.shuffle(order)
    # Handing pictures on along one circle through all questions leaves none with its own.
    source = dict(zip(order, order[1:] + order[:1]))
    return [replace(question, image=questions[source[index]].image) for index, question in enumerate(questions)]


# What is done to questions that an image decides, and to questions that text decides.
IMAGE_HEAVY: dict[str, Callable[[MultipleChoice, random.Random], MultipleChoice]] = {
    "unrelated_text": add_unrelated_text,
    "related_text": add_related_text,
}
TEXT_HEAVY: dict[str, Callable[[MultipleChoice, random.Random], MultipleChoice]] = {
    "noise_image": add_noise_image,
    "full_black": _plain("black"),
    "full_white": _plain("white"),
}


def perturb(questions: Sequence[MultipleChoice], perturbation: str, seed: int = 0) -> list[MultipleChoice]:
    """The questions with one of the perturbations of `IMAGE_HEAVY` and `TEXT_HEAVY`, or `switched_image`.

    Raises:
        ValueError: the perturbation is unknown.
    """
    generator = random.Random(f"{seed}:{perturbation}")
    if perturbation == "switched_image":
        return switch_images(questions, generator)
    known = IMAGE_HEAVY | TEXT_HEAVY
    if perturbation not in known:
        raise ValueError(
            f"the perturbation is {perturbation!r}; it must be one of {', '.join([*known, 'switched_image'])}"
        )
    return [known[perturbation](question, generator) for question in questions]


def choice_accuracy(questions: Sequence[MultipleChoice], answers: Sequence[str]) -> float:
    """Share of answers that choose the right option; an answer that chooses none is wrong.

    Raises:
        ValueError: there are more questions than answers or fewer.
    """
    right = [
        chosen_option(text, question.options) == question.answer
        for question, text in zip(questions, answers, strict=True)
    ]
    return sum(right) / len(right) if right else 0.0


def interference(
    questions: Sequence[MultipleChoice], origin: Sequence[str], perturbed: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The loss of accuracy under each perturbation, and on average.

    Args:
        questions: the questions as they are.
        origin: answers to them.
        perturbed: answers to the perturbed questions, by the perturbation's name.

    Returns:
        `accuracy` (by name, with `origin`), `drop` (origin minus perturbed, by name) and `interference`, the mean
        drop; as JSON can hold them, fractions.
    """
    base = choice_accuracy(questions, origin)
    accuracy = {name: choice_accuracy(questions, answers) for name, answers in perturbed.items()}
    drop = {name: base - value for name, value in accuracy.items()}
    return {
        "metric": "modality interference",
        "questions": len(questions),
        "accuracy": {"origin": base, **accuracy},
        "drop": drop,
        "interference": sum(drop.values()) / len(drop) if drop else 0.0,
    }


_SWITCHED = "switched_image"
_PERTURBATIONS = {"image": [*IMAGE_HEAVY], "text": [*TEXT_HEAVY, _SWITCHED]}


class InterferenceSettings(TaskSettings):
    """How the questions are perturbed."""

    max_new_tokens: int = setting(16, "Token limit of an answer.", ge=1)
    perturbations: list[str] = setting([], f"What is done to them, out of {_PERTURBATIONS}; all that fit if empty.")
    suffix: str = setting("", "Text after the options, such as an instruction to answer with a letter.")


class InterferenceScoreReceived(Received):
    """The score of an answered question."""

    answer: str
    label: str
    decided_by: Name
    perturbation: Name


@register_task("modality_interference")
class InterferenceTask(Task):
    """The questions of a file as they are and under every perturbation that fits what decides them."""

    help = "Accuracy that multiple-choice questions lose to an irrelevant text or picture."
    source = "Modality interference, arXiv 2505.19616"
    table_title = "multiple choice"
    data_kinds = ("mc",)
    data_help = "mc:FILE, a JSONL of question, options, answer and image"
    Settings = InterferenceSettings
    Score = InterferenceScoreReceived
    columns = (
        Column(metric="interference.drop", label="mean drop ↓"),
        *(Column(metric=f"interference.{kind}.origin", label=f"{kind} as is ↑") for kind in _PERTURBATIONS),
        *(
            Column(metric=f"interference.{kind}.{name}.drop", label=f"{name.replace('_', ' ')} ↓")
            for kind, names in _PERTURBATIONS.items()
            for name in names
        ),
    )

    def __init__(self, data: EvaluationData, settings: TaskSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        _ = self._questions  # a record that cannot be asked is refused before the model is loaded
        known = [name for names in _PERTURBATIONS.values() for name in names]
        unknown = [name for name in self.settings.perturbations if name not in known]
        if unknown:
            raise ValueError(f"the perturbation is {unknown[0]!r}; it must be one of {', '.join(known)}")
        numbers = list(data.images)
        random.Random(f"{seed}:{_SWITCHED}").shuffle(numbers)
        # Every question gets the picture of the next one on a circle through all, so that none keeps its own.
        self._other = dict(zip(numbers, numbers[1:] + numbers[:1]))

    @cached_property
    def _questions(self) -> dict[int, tuple[str, MultipleChoice]]:
        """What decides a question, and the question without its picture, by its number."""
        return {number: _as_asked(self.data.content[number], self.data.name) for number in self.data.images}

    def _perturbations(self, number: int) -> list[str]:
        """What is done to a question: what fits, out of what is wanted; a lone picture cannot be switched."""
        wanted = self.settings.perturbations
        fitting = _PERTURBATIONS[self._questions[number][0]]
        return [
            name
            for name in fitting
            if (not wanted or name in wanted) and not (name == _SWITCHED and len(self._other) < 2)
        ]

    @cached_property
    def _asked(self) -> dict[str, tuple[int, str]]:
        """Question and perturbation ("" for the question as it is) by sample key."""
        return {
            f"modality_interference/{number}/{name or 'origin'}": (number, name)
            for number in self.data.images
            for name in ("", *self._perturbations(number))
        }

    def samples(self) -> list[Sample]:
        """Every question as it is and under each of its perturbations."""
        return [self._sample(key, number, name) for key, (number, name) in self._asked.items()]

    def _sample(self, key: str, number: int, name: str) -> Sample:
        _, question = self._questions[number]
        if name in IMAGE_HEAVY:
            question = IMAGE_HEAVY[name](question, self._generator(number, name))
        prompt = question.prompt + self.settings.suffix
        variant = "" if name in IMAGE_HEAVY else name
        return Sample(key=key, task=self.name, image_id=number, prompt=prompt, variant=variant)

    def _generator(self, number: int, name: str) -> random.Random:
        # One for each question, so that a question is perturbed in the same way whichever others are asked.
        return random.Random(f"{self.seed}:{name}:{number}")

    def picture(self, sample: Sample, read: Callable[[Path], Image.Image]) -> Image.Image:
        """The question's picture, or what is shown in its place."""
        if sample.variant == _SWITCHED:
            return read(self.data.images[self._other[sample.image_id]])
        own = read(self.data.images[sample.image_id])
        if not sample.variant:
            return own
        question = replace(self._questions[sample.image_id][1], image=own)
        shown = TEXT_HEAVY[sample.variant](question, self._generator(sample.image_id, sample.variant)).image
        assert shown is not None  # perturbations of the picture give one
        return shown

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The option chosen, the right one, and how the question was asked."""
        decided_by, question = self._questions[sample.image_id]
        return {
            "answer": chosen_option(text, question.options) or "none",
            "label": question.answer,
            "decided_by": decided_by,
            "perturbation": self._asked[sample.key][1] or "origin",
        }

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One answer, under what decides its question and how it was perturbed."""
        score = record["score"]
        name = f"{score['decided_by']}.{score['perturbation']}"
        return {f"{name}.asked": 1, f"{name}.right": score["answer"] == score["label"]}

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """Accuracy as asked and under every perturbation, the drops, and their mean."""
        names = dict.fromkeys((record["score"]["decided_by"], record["score"]["perturbation"]) for record in records)
        perturbed = [(kind, name) for kind, name in names if name != "origin"]
        accuracies = [_metric(f"{kind}.{name}", "higher", _accuracy(kind, name)) for kind, name in names]
        drops = [_metric(f"{kind}.{name}.drop", "lower", _drop(kind, name)) for kind, name in perturbed]

        def mean(counts: Counts) -> Any:
            return sum(_drop(kind, name)(counts) for kind, name in perturbed) / max(len(perturbed), 1)

        return (*accuracies, *drops, _metric("drop", "lower", mean))

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """Questions, accuracies and drops by what decides the questions, as fractions."""
        right: dict[str, dict[str, list[bool]]] = {}
        for record in records:
            score = record["score"]
            answers = right.setdefault(score["decided_by"], {}).setdefault(score["perturbation"], [])
            answers.append(score["answer"] == score["label"])
        return {"metric": "modality interference"} | {
            kind: {
                "questions": len(named.get("origin", [])),
                "accuracy": {name: sum(answers) / len(answers) for name, answers in named.items()},
            }
            for kind, named in right.items()
        }

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The question with its perturbation."""
        return {**super().page_entry(record), "groups": [record["score"]["perturbation"]]}


def _as_asked(record: ChoiceRecord, name: str) -> tuple[str, MultipleChoice]:
    decided_by = record.rest.get("decided_by", "image")
    if decided_by not in _PERTURBATIONS:
        raise ValueError(f"{name}: record {record.number}: decided_by is {decided_by!r}; it must be image or text")
    return decided_by, MultipleChoice(question=record.question, options=record.options, answer=record.answer)


def _accuracy(kind: str, name: str) -> Callable[[Counts], Any]:
    return share(f"{kind}.{name}.right", f"{kind}.{name}.asked")


def _drop(kind: str, name: str) -> Callable[[Counts], Any]:
    return lambda counts: _accuracy(kind, "origin")(counts) - _accuracy(kind, name)(counts)


def _metric(name: str, better: Better, compute: Callable[[Counts], Any]) -> Metric:
    label = name.replace("_", " ").replace(".", " ")
    return Metric(name=f"interference.{name}", label=label, kind="share", better=better, compute=compute)
