"""Records of the files that lmms-eval writes with `--log_samples`, as records of answers of any other tool.

As of lmms-eval 0.7.3 (`loggers/evaluation_tracker.py`) a line holds `doc_id`, the `input` text, the `target` as text,
the model's answer under `filtered_resps` (what the task scored) and, where they differ, under `resps` (before its
filters), and one entry for each metric. The task's document is left out of the file; what POPE's and the caption tasks
put into their metrics tells which question or picture it was. Samples that still have their `doc` are read too.
"""

from collections.abc import Iterator
from typing import Any

from vlm_guard.untrusted.json_files import as_whole_number
from vlm_guard.untrusted.printed_text import SHOWN_CHARACTERS, one_line

# Where documents and metrics name the picture, the surest first.
_IMAGE_FIELDS = ("image_id", "image", "file_name", "filename")
_LABEL_FIELDS = ("ground_truth", "answer")


def is_sample(record: dict[str, Any]) -> bool:
    """Whether a record is one of lmms-eval's."""
    return ("doc_id" in record or "doc" in record) and ("filtered_resps" in record or "resps" in record)


def plain_record(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A record as other tools write it; one that is not lmms-eval's stays as it is.

    Returns:
        `text` (the answer) and, where the sample has them, `question_id`, `image`, `question` (as it was asked, with
        what the task puts behind it), `label` (the right answer) and `strategy` (its category, in lower case).

    Raises:
        ValueError: the record has no answer that is text.
    """
    if not is_sample(record):
        return record
    known = list(_parts(record))
    plain: dict[str, Any] = {"text": _answer(record, where)}
    number = _first(known, ("question_id",), (str, int))
    image = _first(known, _IMAGE_FIELDS, (str, int))
    if as_whole_number(number) is not None:
        plain["question_id"] = number
    elif image is None:
        image = number  # MSCOCO's caption tasks have the picture's file name there
    label = _first(known, _LABEL_FIELDS, (str,)) or record.get("target")
    question = _first(known, ("question",), (str,)) or record.get("input")
    strategy = _first(known, ("category",), (str,))
    found = {"image": image, "question": question, "label": label, "strategy": strategy and strategy.strip().lower()}
    return plain | {name: value for name, value in found.items() if isinstance(value, str | int) and value != ""}


def _parts(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document, where it is there, and the entries of the metrics."""
    doc = record.get("doc")
    if isinstance(doc, dict):
        yield doc
    yield from (value for name, value in record.items() if name != "doc" and isinstance(value, dict))


def _first(parts: list[dict[str, Any]], names: tuple[str, ...], types: tuple[type, ...]) -> Any:
    """The first value of one of these names that is of one of the types."""
    found = (part[name] for name in names for part in parts if name in part)
    return next((value for value in found if isinstance(value, types) and not isinstance(value, bool)), None)


def _answer(record: dict[str, Any], where: str) -> str:
    """The answer, or the first one of a list."""
    for name in ("filtered_resps", "resps"):
        found = record.get(name)
        while isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, str):
            return found
    raise ValueError(
        f"{where} is a sample of lmms-eval without an answer: 'filtered_resps' or 'resps' must hold text; it has "
        f"{one_line(', '.join(record), SHOWN_CHARACTERS)}"
    )
