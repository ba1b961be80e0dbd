"""Per-sample records: one JSON line per sample, appended with fsync, safe against being killed at any moment.

A batch's lines are written by one call and synced before the next batch begins, so a killed run loses at most the batch
in flight. What a kill can leave behind is a last line without its end; it is dropped on the next start.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from vlm_guard.untrusted.json_files import parse_json, text_field
from vlm_guard.whole_files import write_atomically

Record = dict[str, Any]
KEY = "sample"


def read_records(path: Path) -> tuple[dict[str, Record], int]:
    """The records of a file by sample key, and the number of whole bytes.

    Bytes beyond that number are a torn last line. Of two records of one sample the later one counts.

    Raises:
        ValueError: a line other than the last is damaged, so the file cannot be trusted.
    """
    if not path.exists():
        return {}, 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    records = {}
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            record = parse_json(line.decode("utf-8"), "it")
            records[text_field(record, KEY, "it")] = record
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} line {number} is damaged ({error}); delete that line (its sample is computed again) or start "
                "anew with --no-resume"
            ) from error
    return records, whole


class SampleLog:
    """A file of records, open for appending. Opening it cuts off a torn last line.

    Args:
        path: the JSONL file; made with its folder if absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        position, tail = size, b""
        while position > 0 and b"\n" not in tail:
            step = min(65536, position)
            position -= step
            self._file.seek(position)
            tail = self._file.read(step) + tail
        torn = len(tail) - tail.rfind(b"\n") - 1
        if torn:
            self._file.truncate(size - torn)
            os.fsync(self._file.fileno())

    def append(self, records: Iterable[Record]) -> None:
        """Write records and wait until they are on the disk."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        if lines:
            self._file.write(lines.encode("utf-8", errors="backslashreplace"))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "SampleLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replace a file by these records, one a line."""
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
