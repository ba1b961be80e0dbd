"""Reading caption files written by any tool, so that CHAIR can score them without a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.coco import image_id
from vlm_guard.eval.data.lmms_eval_samples import plain_record
from vlm_guard.untrusted.json_files import read_records, text_field, whole_number
from vlm_guard.untrusted.printed_text import SHOWN_CHARACTERS, one_line

_IMAGE_KEYS = ("image_id", "image", "question_id")
_CAPTION_KEYS = ("caption", "text")


@dataclass(frozen=True, kw_only=True)
class CaptionRecord:
    """One generated caption, the image it is about, and the method that gave it ("" where the file names none)."""

    image_id: int
    caption: str
    method: str = ""


def read_image_list(path: str | Path) -> dict[int, int]:
    """Which image each question of a question file is about: records with `question_id` and `image`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks one of the two.
    """
    images: dict[int, int] = {}
    for number, record in read_records(path):
        where = f"{path}: record {number}"
        if "question_id" not in record or not {"image", "image_id"} & record.keys():
            raise ValueError(f"{where} needs 'question_id' and 'image'; it has {_keys(record)}")
        question = whole_number(record["question_id"], "question_id", where)
        image = _image_of(record.get("image_id", record.get("image")), where)
        if images.setdefault(question, image) != image:
            raise ValueError(
                f"{where} says question {question} is about image {image}, before it was {images[question]}"
            )
    if not images:
        raise ValueError(f"{path} has no questions")
    return images


def _keys(record: Mapping[str, Any]) -> str:
    return one_line(", ".join(record), SHOWN_CHARACTERS) or "nothing"


def _image_of(value: Any, where: str) -> int:
    try:
        return image_id(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _caption_record(record: dict[str, Any], where: str, images: Mapping[int, int] | None) -> CaptionRecord:
    method = text_field(record, "method", where, optional=True)
    record = plain_record(record, where)
    image_key = next((key for key in _IMAGE_KEYS if key in record), None)
    caption_key = next((key for key in _CAPTION_KEYS if key in record), None)
    if image_key is None or caption_key is None:
        raise ValueError(
            f"{where} needs one of {', '.join(_IMAGE_KEYS)} and one of {', '.join(_CAPTION_KEYS)}; it has "
            f"{_keys(record)}"
        )
    caption = record[caption_key]
    if not isinstance(caption, str):
        raise ValueError(f"{where}: {caption_key!r} must be text, not {type(caption).__name__}")
    if image_key == "question_id" and images is not None:
        question = whole_number(record[image_key], image_key, where)
        if question not in images:
            raise ValueError(f"{where}: question {question} is not in the image list")
        number = images[question]
    else:
        number = _image_of(record[image_key], where)
    return CaptionRecord(image_id=number, caption=caption, method=method)


def read_captions(path: str | Path, images: Mapping[int, int] | None = None) -> list[CaptionRecord]:
    """Captions from a JSONL file (or JSON lists, or objects in a row), in the order of the file.

    A record names its image by `image_id`, `image` or `question_id`, in this order of preference, as an id or a
    file name, and holds the text as `caption` or `text`; a sample of lmms-eval is read too. `method` says who wrote it.

    Args:
        path: the file, which may be gzipped.
        images: from question id to image id, for files that only number their questions (`read_image_list`);
            without it a `question_id` is taken for the image id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks an image or a text, or the file has no record.
    """
    records = [_caption_record(record, f"{path}: record {number}", images) for number, record in read_records(path)]
    if not records:
        raise ValueError(f"{path} has no captions")
    return records
