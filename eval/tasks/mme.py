"""MME's hallucination subset: existence, count, position, colour (Fu et al., arXiv 2306.13394).

Two questions per image, one to be answered yes and one no. A subtask's score is its accuracy plus its accuracy+ (both
questions of an image right), in percent, so 200 at most; the subset's total is 800 at most. The data is not part of
this project: see the reader for the layout it expects.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

HALLUCINATION_SUBTASKS = ("existence", "count", "position", "color")

_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class MmeQuestion:
    """One question of MME.

    Attributes:
        subtask: name of the subtask.
        image: picture file.
        text: the question, with its own suffix "Please answer yes or no.".
        label: yes or no.
    """

    subtask: str
    image: Path
    text: str
    label: str

    def __post_init__(self) -> None:
        if self.label not in ("yes", "no"):
            raise ValueError(f"the label of a question about {self.image} is {self.label!r}; it must be yes or no")


def _picture(folder: Path, name: str) -> Path:
    for place in (folder, folder / "images"):
        for suffix in _IMAGE_SUFFIXES:
            if (place / f"{name}{suffix}").is_file():
                return place / f"{name}{suffix}"
    raise FileNotFoundError(f"{folder} has questions about {name}, but no picture {name}.jpg or .png")


def read_mme(folder: str | Path, subtasks: Sequence[str] = HALLUCINATION_SUBTASKS) -> list[MmeQuestion]:
    """The questions of MME's release folder.

    Every subtask is a folder with one text file per picture, in itself (`existence/000000006040.txt`, beside the
    picture) or in `questions_answers_YN` (pictures then in `images`); a line is the question, a tab, Yes or No.

    Raises:
        FileNotFoundError: a subtask's folder, its questions or a picture is missing.
        ValueError: a line is not a question with its answer.
    """
    questions = []
    for subtask in subtasks:
        place = Path(folder) / subtask
        texts = sorted(place.glob("*.txt")) or sorted((place / "questions_answers_YN").glob("*.txt"))
        if not texts:
            raise FileNotFoundError(f"there are no question files for the subtask {subtask!r} in {place}")
        for path in texts:
            image = _picture(place, path.stem)
            for line in path.read_text(encoding="utf-8").splitlines():
                if not line.strip():
                    continue
                text, tab, label = line.rpartition("\t")
                if not tab:
                    raise ValueError(f"{path}: {line!r} is no question and answer with a tab between them")
                questions.append(
                    MmeQuestion(subtask=subtask, image=image, text=text.strip(), label=label.strip().lower())
                )
    return questions


def parse_mme(text: str) -> Literal["yes", "no", "other"]:
    """Read an answer as MME's own script does: exactly yes or no, else one of them in the first four characters."""
    answer = text.strip().lower()
    if answer in ("yes", "no"):
        return answer  # type: ignore[return-value]
    if "yes" in answer[:4]:
        return "yes"
    return "no" if "no" in answer[:4] else "other"


@dataclass(frozen=True, kw_only=True)
class SubtaskScore:
    """Counts of one subtask.

    Attributes:
        questions: number of questions.
        correct: questions answered rightly.
        images: number of images.
        both_correct: images with all their questions answered rightly.
        other: answers that are neither yes nor no, which are wrong.
    """

    questions: int
    correct: int
    images: int
    both_correct: int
    other: int

    @property
    def accuracy(self) -> float:
        """Share of right answers, in percent."""
        return 100 * self.correct / self.questions if self.questions else 0.0

    @property
    def accuracy_plus(self) -> float:
        """Share of images with all questions right, in percent."""
        return 100 * self.both_correct / self.images if self.images else 0.0

    @property
    def score(self) -> float:
        """Accuracy plus accuracy+, 200 at most."""
        return self.accuracy + self.accuracy_plus


def score_mme(questions: Sequence[MmeQuestion], answers: Sequence[str]) -> dict[str, Any]:
    """Score answers, one per question and in the questions' order.

    Returns:
        `subtasks` (counts, accuracy, accuracy_plus and score by name) and `total`, the sum of the scores; as JSON
        can hold them.

    Raises:
        ValueError: there are more questions than answers or fewer.
    """
    by_subtask: dict[str, dict[Path, list[str]]] = {}
    for question, text in zip(questions, answers, strict=True):
        answer = parse_mme(text)
        verdict = "right" if answer == question.label else "other" if answer == "other" else "wrong"
        by_subtask.setdefault(question.subtask, {}).setdefault(question.image, []).append(verdict)
    scores = {}
    for name, images in by_subtask.items():
        verdicts = [verdict for image in images.values() for verdict in image]
        scores[name] = SubtaskScore(
            questions=len(verdicts),
            correct=verdicts.count("right"),
            images=len(images),
            both_correct=sum(set(image) == {"right"} for image in images.values()),
            other=verdicts.count("other"),
        )
    return {
        "metric": "MME",
        "subtasks": {
            name: {
                **asdict(score),
                "accuracy": score.accuracy,
                "accuracy_plus": score.accuracy_plus,
                "score": score.score,
            }
            for name, score in scores.items()
        },
        "total": sum(score.score for score in scores.values()),
    }
