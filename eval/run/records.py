"""Per-sample records: one JSON line per sample, appended with fsync, safe against being killed at any moment.

A batch's lines are written by one call and synced before the next batch begins, so a killed run loses at most the batch
in flight. What a kill can leave behind is a last line without its end; it is dropped on the next start. Every line ends
with a checksum of itself, so that a line a disk or an editor has changed is found; lines of earlier versions have none
and are read as they are.
"""

import json
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from vlm_guard.eval.tasks.base import Record
from vlm_guard.untrusted.json_files import parse_json, text_field
from vlm_guard.whole_files import write_atomically

KEY = "sample"
CHECKSUM = "crc32"
_CHECKED = re.compile(rb', "crc32": "([0-9a-f]{8})"\}$')
_CHECKED_LENGTH = len(b', "crc32": "01234567"}')


@dataclass(kw_only=True)
class RecordFile:
    """What a file of records holds.

    Attributes:
        records: by sample key; of two records of one sample the later one.
        whole: number of whole bytes; what is beyond is a torn last line.
        lines: number of whole lines, the damaged ones among them.
        damaged: a sentence for every damaged line, naming file and line.
    """

    records: dict[str, Record] = field(default_factory=dict)
    whole: int = 0
    lines: int = 0
    damaged: list[str] = field(default_factory=list)


def scan_records(path: Path) -> RecordFile:
    """Everything a file of records holds, damaged lines named and left out; nothing where there is no file."""
    found = RecordFile()
    if not path.exists():
        return found
    content = path.read_bytes()
    found.whole = content.rfind(b"\n") + 1
    # Only line feeds end a line: bytes.splitlines would cut at a carriage return that damage has put there.
    for number, line in enumerate(content[: found.whole].split(b"\n")[:-1], 1):
        found.lines += 1
        try:
            record = parse_line(line)
            found.records[text_field(record, KEY, "it")] = record
        except ValueError as error:
            found.damaged.append(f"{path} line {number} is damaged ({error})")
    return found


def read_records(path: Path) -> tuple[dict[str, Record], int]:
    """The records of a file by sample key, and the number of whole bytes.

    Bytes beyond that number are a torn last line. Of two records of one sample the later one counts.

    Raises:
        ValueError: a line other than the last is damaged, so numbers made from the file cannot be trusted.
    """
    found = scan_records(path)
    if found.damaged:
        more = f", and {len(found.damaged) - 1} more lines" if len(found.damaged) > 1 else ""
        raise ValueError(
            f"{found.damaged[0]}{more}; run the same 'vlm-guard eval' with the same --out again, which asks these "
            "samples again and nothing else"
        )
    return found.records, found.whole


def format_line(record: Record) -> bytes:
    """A record as a line of the file, with its checksum and the line feed."""
    body = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="backslashreplace")
    return body[:-1] + f', "{CHECKSUM}": "{zlib.crc32(body):08x}"}}\n'.encode()


def parse_line(line: bytes) -> Record:
    """The record of a line that `format_line` wrote, without its checksum; also of a line that has none.

    Raises:
        ValueError: the line is no JSON object, or is not what its checksum was made of.
    """
    checked = _CHECKED.search(line, max(0, len(line) - _CHECKED_LENGTH))
    if checked:
        line = line[: checked.start()] + b"}"
        if zlib.crc32(line) != int(checked.group(1), 16):
            raise ValueError("it was changed after it was written: its checksum is another")
    record = parse_json(line.decode("utf-8"), "it")
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if CHECKSUM in record:
        raise ValueError("its checksum cannot be read")
    return record


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
        lines = b"".join(format_line(record) for record in records)
        if lines:
            self._file.write(lines)
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
    write_atomically(path, b"".join(format_line(record) for record in records).decode("utf-8"))
