"""Scoring a whole caption file with CHAIR: what `vlm-guard chair` computes and prints."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.coco import object_sets, read_coco, read_object_sets
from vlm_guard.eval.tasks.chair.captions import read_captions, read_image_list
from vlm_guard.eval.tasks.chair.scoring import CaptionScore, ChairScorer, ChairSummary, summarise
from vlm_guard.eval.tasks.chair.text import object_vocabulary
from vlm_guard.untrusted.printed_text import shown
from vlm_guard.whole_files import write_atomically


def ground_truth(
    instances: Sequence[Path], captions: Sequence[Path], objects: Path | None, coco: Path | None, mode: str
) -> dict[int, list[str]]:
    """The objects of every image from the one source that is given: annotation files, object sets or a folder.

    Raises:
        ValueError: no source or more than one is given, or instances without captions.
        FileNotFoundError: a file is missing.
    """
    sources = [bool(instances or captions), objects is not None, coco is not None]
    if sum(sources) != 1:
        raise ValueError(
            "give the ground truth in one way: --instances with --captions, or --objects, or --coco; "
            f"{sum(sources)} of them were given"
        )
    if objects is not None:
        return _known_objects(objects)
    if coco is not None:
        return read_coco(coco, mode).objects
    if not (instances and captions):
        raise ValueError(
            "CHAIR counts objects of the instances and of the reference captions: give both --instances and --captions"
        )
    return object_sets(instances, captions, mode)


def _known_objects(path: Path) -> dict[int, list[str]]:
    """Object sets of a file, all of them MSCOCO's categories."""
    found = read_object_sets(path)
    known = frozenset(object_vocabulary().categories)
    for image, names in found.items():
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"{path}: image {image} has {shown(unknown[0])}, which is no MSCOCO category; the objects of an image "
                "are named by MSCOCO's 80 category names, for example 'dining table'"
            )
    return found


@dataclass(frozen=True, kw_only=True)
class ChairReport:
    """A scored caption file.

    Attributes:
        summary: the corpus-level metric.
        scores: one record per caption, in the order of the file.
        unknown_images: captions that were left out because the ground truth does not have their image.
    """

    summary: ChairSummary
    scores: tuple[CaptionScore, ...]
    unknown_images: int

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON can hold it, with the number of captions left out."""
        return {"metric": "CHAIR", **self.summary.to_dict(), "unknown_images": self.unknown_images}


def score_captions(
    path: str | Path,
    objects: Mapping[int, Collection[str]],
    mode: str = "pattern",
    image_list: str | Path | None = None,
    skip_unknown: bool = False,
) -> ChairReport:
    """Score every caption of a file of one method; see `score_methods`.

    Raises:
        ValueError: as `score_methods`, and where the file holds captions of several methods.
    """
    reports = score_methods(path, objects, mode, image_list, skip_unknown)
    if len(reports) > 1:
        raise ValueError(f"{path} holds captions of several methods ({', '.join(reports)}); use score_methods")
    return next(iter(reports.values()))


def score_methods(
    path: str | Path,
    objects: Mapping[int, Collection[str]],
    mode: str = "pattern",
    image_list: str | Path | None = None,
    skip_unknown: bool = False,
) -> dict[str, ChairReport]:
    """Score every caption of a file, those of each method apart.

    Args:
        path: caption file (`vlm_guard.eval.tasks.chair.captions.read_captions`).
        objects: the objects of every image, built with the same mode.
        mode: text pipeline.
        image_list: question file for captions that only have a `question_id`.
        skip_unknown: leave out and count captions of images that are not in `objects`, instead of an error.

    Returns:
        The report of each method, by the name its records have under `method`; "" where they have none.

    Raises:
        ValueError: a record is incomplete, or (without `skip_unknown`) about an unknown image.
        FileNotFoundError: a file is missing.
    """
    scorer = ChairScorer(objects, mode)
    images = read_image_list(image_list) if image_list is not None else None
    records = read_captions(path, images)
    unknown = [record.image_id for record in records if record.image_id not in objects]
    if unknown and not skip_unknown:
        raise ValueError(
            f"{len(unknown)} of {len(records)} captions in {path} are about images the ground truth does not have, "
            f"for example image {unknown[0]}; give the annotations these images belong to, or --skip-unknown"
        )
    reports = {}
    for method in dict.fromkeys(record.method for record in records):
        own = [record for record in records if record.method == method]
        known = [record for record in own if record.image_id in objects]
        scores = tuple(scorer.score(record.image_id, record.caption) for record in known)
        reports[method] = ChairReport(
            summary=summarise(scores, mode), scores=scores, unknown_images=len(own) - len(known)
        )
    return reports


def write_method_records(reports: Mapping[str, ChairReport], path: Path) -> None:
    """Write one JSON line per caption, with its method where the file named one."""
    lines = []
    for method, report in reports.items():
        named = {"method": method} if method else {}
        lines += [json.dumps({**score.to_dict(), **named}, ensure_ascii=False) + "\n" for score in report.scores]
    write_atomically(path, "".join(lines))


def side_by_side_lines(first: ChairReport, second: ChairReport) -> Iterator[str]:
    """The same captions in both text modes as a person reads them, rates in percent."""
    rates = ("chair_s", "chair_i", "recall", "precision", "f1", "complete_chair_s", "complete_chair_i")
    left, right = first.summary, second.summary
    yield f"CHAIR, {left.captions} captions of {left.images} images, nltk {left.nltk}"
    yield f"{'':<18}{left.mode:>10}{right.mode:>10}{'difference':>12}"
    for rate in rates:
        before, after = (100 * getattr(total, rate) for total in (left, right))
        said = [f"{before:10.2f}", f"{after:10.2f}", f"{after - before:+12.2f}"]
        if rate not in ("recall", "f1") and not (left.mentions and right.mentions):
            said = [
                said[0] if left.mentions else f"{'-':>10}",
                said[1] if right.mentions else f"{'-':>10}",
                f"{'-':>12}",
            ]
        yield f"{rate:<18}{''.join(said)}"
    for name in ("mentions", "hallucinated_mentions", "tokens"):
        before, after = getattr(left, name), getattr(right, name)
        yield f"{name.replace('_', ' '):<22}{before:6d}{after:10d}{after - before:+12d}"
    if first.unknown_images:
        yield f"left out: {first.unknown_images} captions of images without ground truth"


def summary_lines(report: ChairReport) -> Iterator[str]:
    """The report as a person reads it: every rate with the counts it comes from."""
    total = report.summary
    rows = [
        ("CHAIR_s", total.chair_s, f"{total.hallucinated_captions} of {total.captions} captions"),
        ("CHAIR_i", total.chair_i, f"{total.hallucinated_mentions} of {total.mentions} mentions"),
        ("recall", total.recall, f"{total.recalled_objects} of {total.objects} objects"),
        ("precision", total.precision, f"{total.recalled_objects} of {total.mentioned_objects} distinct objects"),
        ("F1", total.f1, ""),
        ("4-gram repetition", total.repetition, ""),
    ]
    yield f"CHAIR, text mode {total.mode}, {total.captions} captions of {total.images} images"
    empty = ("CHAIR_s", "CHAIR_i", "precision") if not total.mentions else ()
    for name, value, counts in rows:
        number = f"{'-':>7}  " if name in empty else f"{100 * value:7.2f} %"
        yield f"{name:<18}{number}   {counts}".rstrip()
    yield f"{'length':<18}{total.mean_tokens:7.1f} tokens, {total.mean_words:.1f} words"
    yield f"{'per 100 words':<18}{total.per_100_words:7.2f}     hallucinated mentions"
    fifths = ", ".join(f"{100 * share:.1f}" for share in total.fifth_chair_i)
    yield f"{'CHAIR_i by fifths':<18}  {fifths} %, from the first fifth of the text to the last"
    complete = f"{100 * total.complete_chair_s:7.2f} % CHAIR_s, {100 * total.complete_chair_i:.2f} % CHAIR_i"
    yield f"{'whole sentences':<18}{complete}, without an unfinished last sentence"
    yield f"{'read with':<18}    nltk {total.nltk}"
    if report.unknown_images:
        yield f"left out: {report.unknown_images} captions of images without ground truth"
