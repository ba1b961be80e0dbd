"""Reading caption files written by any tool, so that CHAIR can score them without a model."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.coco import image_id

_IMAGE_KEYS = ("image_id", "image", "question_id")
_CAPTION_KEYS = ("caption", "text")


@dataclass(frozen=True, kw_only=True)
class CaptionRecord:
    """One generated caption and the image it is about."""

    image_id: int
    caption: str


def read_records(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a JSONL file, or of a JSON file that holds one list of them, each with its number from 1.

    Files whose name ends in .gz are unpacked. Empty lines are skipped; the number is the line's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")  # some tools put a mark in front
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error
    for number, record in _numbered(text, path):
        if not isinstance(record, dict):
            raise ValueError(f"{path}: record {number} must be a JSON object, not {type(record).__name__}")
        yield number, record


def _numbered(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), start=1)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no valid JSON: {error}") from error
        return
    # Only line feeds end a line: captions may hold the other line separators of Unicode as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is no valid JSON: {error}") from error


def read_image_list(path: str | Path) -> dict[int, int]:
    """Which image each question of a question file is about: records with `question_id` and `image`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks one of the two.
    """
    images = {}
    for number, record in read_records(path):
        if "question_id" not in record or not {"image", "image_id"} & record.keys():
            raise ValueError(f"{path}: record {number} needs 'question_id' and 'image'; it has {', '.join(record)}")
        images[int(record["question_id"])] = image_id(record.get("image_id", record.get("image")))
    return images


def _caption_record(record: Mapping[str, Any], where: str, images: Mapping[int, int] | None) -> CaptionRecord:
    image_key = next((key for key in _IMAGE_KEYS if key in record), None)
    caption_key = next((key for key in _CAPTION_KEYS if key in record), None)
    if image_key is None or caption_key is None:
        raise ValueError(
            f"{where} needs one of {', '.join(_IMAGE_KEYS)} and one of {', '.join(_CAPTION_KEYS)}; it has "
            f"{', '.join(record) or 'nothing'}"
        )
    caption = record[caption_key]
    if not isinstance(caption, str):
        raise ValueError(f"{where}: {caption_key!r} must be text, not {type(caption).__name__}")
    try:
        number = image_id(record[image_key])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if image_key == "question_id" and images is not None:
        if number not in images:
            raise ValueError(f"{where}: question {number} is not in the image list")
        number = images[number]
    return CaptionRecord(image_id=number, caption=caption)


def read_captions(path: str | Path, images: Mapping[int, int] | None = None) -> list[CaptionRecord]:
    """Captions from a JSONL file (or a JSON list), in the order of the file.

    A record names its image by `image_id`, `image` or `question_id`, in this order of preference, as an id or a
    file name, and holds the text as `caption` or `text`.

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
