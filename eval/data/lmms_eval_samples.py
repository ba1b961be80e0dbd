"""Records of the files that lmms-eval writes with `--log_samples`, as records of answers of any other tool.

As of lmms-eval 0.7 a line holds the task's `doc` without its pictures, the `target`, and the model's answer under
`filtered_resps` (what the task scored) and `resps` (before its filters), in lists.
"""

from typing import Any

from vlm_guard.untrusted.printed_text import SHOWN_CHARACTERS, one_line

# Where documents name their picture, the surest first; MSCOCO's caption tasks have its file name as `question_id`.
_IMAGE_FIELDS = ("image_id", "image", "file_name", "filename")


def is_sample(record: dict[str, Any]) -> bool:
    """Whether a record is one of lmms-eval's."""
    return isinstance(record.get("doc"), dict) and ("filtered_resps" in record or "resps" in record)


def plain_record(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A record as other tools write it; one that is not lmms-eval's stays as it is.

    Returns:
        `text` (the answer) and, where the document has them, `question_id`, `image`, `question`, `label` (its right
        answer) and `strategy` (its category, in lower case).

    Raises:
        ValueError: the record has no answer that is text.
    """
    if not is_sample(record):
        return record
    doc = record["doc"]
    plain: dict[str, Any] = {"text": _answer(record, where)}
    if "question_id" in doc:
        plain["question_id"] = doc["question_id"]
    image = next((doc[name] for name in _IMAGE_FIELDS if isinstance(doc.get(name), str | int)), None)
    if image is not None:
        plain["image"] = image
    if isinstance(doc.get("question"), str):
        plain["question"] = doc["question"]
    label = doc.get("answer", record.get("target"))
    if isinstance(label, str):
        plain["label"] = label
    if isinstance(doc.get("category"), str) and doc["category"].strip():
        plain["strategy"] = doc["category"].strip().lower()
    return plain


def _answer(record: dict[str, Any], where: str) -> str:
    """The first text in the lists of answers."""
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
