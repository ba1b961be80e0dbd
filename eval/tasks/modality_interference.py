"""Modality interference: does an irrelevant image or text change the answer? (arXiv 2505.19616)

A multiple-choice question that one modality suffices for is asked as it is and with an irrelevant other one. The
loss of accuracy is the interference.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from vlm_guard.eval.data.word_lists import read_word_list

_STANDALONE_CAPITAL = re.compile(r"(?<![A-Za-z])([A-Z])(?![A-Za-z'’])")


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
        lines = [self.context] if self.context else []
        return "\n".join([*lines, self.question, *(f"{letter}: {text}" for letter, text in self.options.items())])


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


def chosen_option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter an answer chooses: the first capital that stands alone and names an option, else the one option
    whose text the answer contains; None where neither is there.
    """
    for letter in _STANDALONE_CAPITAL.findall(text):
        if letter in options:
            return letter
    contained = [letter for letter, content in options.items() if content.lower() in text.lower()]
    return contained[0] if len(contained) == 1 else None


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
