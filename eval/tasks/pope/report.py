"""What `vlm-guard pope` prints and `vlm-guard pope-questions` writes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from vlm_guard.eval.data.coco import read_coco, read_object_sets
from vlm_guard.eval.tasks.pope.leading_queries import LeadingSummary, lead, suggestion
from vlm_guard.eval.tasks.pope.questions import Strategy
from vlm_guard.eval.tasks.pope.scoring import PopeScore, PopeSummary, build_questions, sample_images, write_questions
from vlm_guard.untrusted.printed_text import one_line


def _row(name: str, accuracy: float, precision: float, recall: float, f1: float, yes_ratio: float) -> str:
    return f"{one_line(name, 40):<12}" + "".join(
        f"{100 * rate:10.2f}" for rate in (accuracy, precision, recall, f1, yes_ratio)
    )


def _score_row(name: str, score: PopeScore) -> str:
    rates = _row(name, score.accuracy, score.precision, score.recall, score.f1, score.yes_ratio)
    return f"{rates}{score.unparsed:7d}{score.questions:10d}"


# 79 columns with the number of questions: a terminal has 80.
_HEADER = f"{'':<12}" + "".join(f"{name:>10}" for name in ("accuracy", "precision", "recall", "F1", "yes ratio"))
_HEADER += f"{'unread':>7}"


def summary_lines(summary: PopeSummary) -> Iterator[str]:
    """POPE's scores as a person reads them, in percent, one line per strategy and their mean."""
    yield f"POPE, answers read by '{summary.parser}'"
    yield f"{_HEADER} questions"
    for name, score in summary.strategies.items():
        yield _score_row(name, score)
    if len(summary.strategies) > 1:
        yield f"{_row('mean', **summary.mean)}{summary.unparsed:7d}"


def leading_lines(changes: LeadingSummary) -> Iterator[str]:
    """The comparison with leading queries as a person reads it, rates in percent."""
    yield ""
    yield "With leading queries, all strategies together"
    yield f"{_HEADER} questions"
    yield _score_row("neutral", changes.neutral)
    yield _score_row("leading", changes.leading)
    yield (
        f"accuracy drop {100 * changes.accuracy_drop:.2f}; {changes.changed} answers changed "
        f"({100 * changes.change_rate:.2f} %), {changes.right_to_wrong} from right to wrong "
        f"({100 * changes.error_induction_rate:.2f} % of the right ones), {changes.wrong_to_right} from wrong to "
        f"right; {100 * changes.positive_flip_ratio:.2f} % of the flips went to yes"
    )


def build_question_files(
    output: str | Path,
    *,
    coco: str | Path | None = None,
    objects: str | Path | None = None,
    strategies: Sequence[str] | None = None,
    images: int = 500,
    per_image: int = 6,
    seed: int = 0,
    template: str = "original",
    leading: str | None = None,
    towards: str = "wrong",
) -> Iterator[tuple[Path, int]]:
    """Build POPE's questions and write `pope_<strategy>.json` files, each with a leading variant if one is named.

    Args:
        output: folder for the files, made if it is not there.
        coco: folder in MSCOCO's format to take images and objects from, or
        objects: a file of object sets.
        strategies: strategies to build, all three by default.
        images: number of images to draw, 0 for all.
        per_image: questions per image and strategy.
        seed: seed of the draw of images and of objects.
        template: question text.
        leading: template of the leading variant, None for no variant.
        towards: what the leading variant suggests.

    Yields:
        The files written, with their number of questions.

    Raises:
        ValueError: both sources or none are given, or an argument is out of range.
        FileNotFoundError: a source is missing.
    """
    image_names = None
    known: Mapping[int, Sequence[str]]
    if coco is not None and objects is None:
        folder = read_coco(coco)
        image_names = {number: path.name for number, path in folder.images.items()}
        known = {number: folder.objects[number] for number in folder.images}
    elif objects is not None and coco is None:
        known = read_object_sets(objects)
    else:
        raise ValueError("give the objects of the images in one way: --coco or --objects")
    try:
        if images:
            known = sample_images(known, images, max(1, per_image // 2), seed)
        questions = build_questions(
            known, strategies or get_args(Strategy), per_image, seed, template, image_names=image_names
        )
    except ValueError as error:
        raise ValueError(f"{error} (the objects are those of {coco or objects})") from error
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for strategy in dict.fromkeys(question.strategy for question in questions):
        chosen = [question for question in questions if question.strategy == strategy]
        write_questions(chosen, output / f"pope_{strategy}.json")
        yield output / f"pope_{strategy}.json", len(chosen)
        if leading is not None:
            path = output / f"pope_{strategy}_leading_{leading}_{towards}.json"
            led = [
                replace(question, text=lead(question.text, suggestion(question.label, towards), leading))
                for question in chosen
            ]
            write_questions(led, path)
            yield path, len(led)
