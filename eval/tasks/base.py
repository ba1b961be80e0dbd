"""What is asked about the images, and how an answer becomes a record: captions for CHAIR, yes/no questions for POPE."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vlm_guard.eval.data.datasets import EvaluationData, hash_lines
from vlm_guard.eval.run.records import Record
from vlm_guard.eval.tasks.chair.scoring import CaptionScore, ChairScorer, Mention, summarise
from vlm_guard.eval.tasks.pope.parsers import PARSERS
from vlm_guard.eval.tasks.pope.scoring import (
    PopeQuestion,
    build_questions,
    parse_answer,
    score_predictions,
    with_suffix,
)

CAPTION_PROMPT = "Please describe this image in detail."
STRATEGIES = ("random", "popular", "adversarial")
TASK_NAMES = ("chair", "pope")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt about one image.

    Attributes:
        key: unique in a run and the same in every run of the same settings, for example "pope/139/a dog".
        task: name of the task.
        image_id: image asked about.
        prompt: the text put into the template, suffix included.
    """

    key: str
    task: str
    image_id: int
    prompt: str


class Task(ABC):
    """A set of prompts with a score.

    Attributes:
        name: as on the command line and in records.
        max_new_tokens: where an answer is cut off.
    """

    name: str
    max_new_tokens: int

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that decides what the numbers mean, for results and resume."""

    @abstractmethod
    def samples(self) -> list[Sample]:
        """All prompts, those of one image side by side."""

    @abstractmethod
    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """What the record of an answer holds under `score`."""


class ChairTask(Task):
    """One caption per image, scored with CHAIR.

    Args:
        data: images and their objects, read with the text mode to score with.
        prompt: the instruction; the most common one of the literature by default.
        max_new_tokens: 512 in nearly all published long-caption tables, 64 in others; never mix them.
    """

    name = "chair"

    def __init__(self, data: EvaluationData, *, prompt: str = CAPTION_PROMPT, max_new_tokens: int = 512) -> None:
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self._images = tuple(data.images)
        self._scorer = ChairScorer(data.objects, data.mode)

    def describe(self) -> dict[str, Any]:
        """Text mode, prompt and token limit."""
        return {"text_mode": self._scorer.mode, "prompt": self.prompt, "max_new_tokens": self.max_new_tokens}

    def samples(self) -> list[Sample]:
        """One per image."""
        return [
            Sample(key=f"chair/{image_id}", task=self.name, image_id=image_id, prompt=self.prompt)
            for image_id in self._images
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The caption's CHAIR record with every mention's place."""
        score = self._scorer.score(sample.image_id, text).to_dict()
        return {name: value for name, value in score.items() if name not in ("image_id", "caption")}


class PopeTask(Task):
    """POPE's yes/no questions.

    A question that several strategies share (their positives are the same) is asked once and counted in each.

    Args:
        data: images and their objects; questions are about images with enough of them.
        strategies: out of random, popular and adversarial.
        per_image: questions per image and strategy.
        seed: of the random negatives.
        suffix: name of the sentence that follows the question (`vlm_guard.eval.tasks.pope.scoring.SUFFIXES`).
        parser: how answers are read.
        max_new_tokens: yes and no are first words; 10 is OPERA's limit.
        questions: published questions instead of built ones; those about other images are left out.

    Raises:
        ValueError: the parser or suffix is unknown, or no question is about an image of the data.
    """

    name = "pope"

    def __init__(
        self,
        data: EvaluationData,
        *,
        strategies: Sequence[str] = STRATEGIES,
        per_image: int = 6,
        seed: int = 0,
        suffix: str = "none",
        parser: str = "strict",
        max_new_tokens: int = 10,
        questions: Sequence[PopeQuestion] | None = None,
    ) -> None:
        if parser not in PARSERS:
            raise ValueError(f"the answer parser is {parser!r}; it must be one of {', '.join(PARSERS)}")
        self.suffix, self.parser, self.max_new_tokens = suffix, parser, max_new_tokens
        if questions is None:
            objects = {image_id: data.objects[image_id] for image_id in data.images}
            names = {image_id: path.name for image_id, path in data.images.items()}
            questions = build_questions(objects, strategies, per_image, seed, image_names=names)
            self.origin = f"built, {per_image} per image and strategy, seed {seed}"
        else:
            questions = [question for question in questions if question.image_id in data.images]
            self.origin = "question files"
        if not questions:
            raise ValueError("none of the POPE questions is about an image of this data")
        self.questions = questions
        order = {image_id: place for place, image_id in enumerate(data.images)}
        self._by_key: dict[str, list[PopeQuestion]] = {}
        for question in sorted(questions, key=lambda item: order[item.image_id]):
            asked = self._by_key.setdefault(f"pope/{question.image_id}/{question.text}", [])
            if asked and asked[0].label != question.label:
                raise ValueError(
                    f"{question.text!r} about image {question.image_id} is labelled yes and no; the question files "
                    "contradict each other"
                )
            asked.append(question)

    def describe(self) -> dict[str, Any]:
        """Questions (by hash), suffix, parser and token limit."""
        return {
            "questions": len(self.questions),
            "strategies": list(dict.fromkeys(question.strategy for question in self.questions)),
            "origin": self.origin,
            "questions_sha256": self._hash,
            "suffix": with_suffix("", self.suffix),
            "parser": self.parser,
            "max_new_tokens": self.max_new_tokens,
        }

    @cached_property
    def _hash(self) -> str:
        return hash_lines(f"{item.image_id} {item.strategy} {item.label} {item.text}" for item in self.questions)

    def samples(self) -> list[Sample]:
        """One per image and distinct question text."""
        return [
            Sample(key=key, task=self.name, image_id=asked[0].image_id, prompt=with_suffix(asked[0].text, self.suffix))
            for key, asked in self._by_key.items()
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The answer as read, and the questions it answers with their labels."""
        asked = self._by_key[sample.key]
        return {
            "answer": parse_answer(text, self.parser, asked[0].label),
            "label": asked[0].label,
            "object": asked[0].object,
            "strategies": [question.strategy for question in asked],
        }


def caption_score(record: Record) -> CaptionScore:
    """The CHAIR score of an answered caption's record."""
    score = record["score"]
    mentions = score["mentions"]
    return CaptionScore(
        image_id=record["image_id"],
        caption=record["text"],
        mentions=tuple(
            Mention(**{name: mention[name] for name in ("node", "text", "start", "end")}) for mention in mentions
        ),
        hallucinated=tuple(mention["hallucinated"] for mention in mentions),
        objects=tuple(score["objects"]),
        tokens=score["tokens"],
        words=score["words"],
        repeated_4_grams=score["repeated_4_grams"],
    )


def summarise_chair(records: Iterable[Record], mode: str) -> dict[str, Any]:
    """CHAIR's summary of the records of answered captions."""
    return summarise((caption_score(record) for record in records), mode).to_dict()


def summarise_pope(records: Iterable[Record], parser: str) -> dict[str, Any]:
    """POPE's summary of the records of answered questions: per strategy, and the mean."""
    from vlm_guard.eval.tasks.pope.scoring import PopeSummary

    pairs: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        score = record["score"]
        for strategy in score["strategies"]:
            pairs.setdefault(strategy, []).append((score["label"], score["answer"]))
    order = sorted(pairs, key=lambda name: STRATEGIES.index(name) if name in STRATEGIES else len(STRATEGIES))
    strategies = {name: score_predictions(*zip(*pairs[name])) for name in order}
    return PopeSummary(parser=parser, strategies=strategies).to_dict()
