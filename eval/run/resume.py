"""Where a run's records lie, and whether they may be continued.

A method's folder holds `run.json` (the fingerprint: everything that decides the answers), `samples.jsonl` and, while
several processes work, one `samples.rank-N.jsonl` each. A finished or killed run is continued when the fingerprint is
the same; otherwise the first differing field is named.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_guard.eval.run.distributed import ProcessGroup
from vlm_guard.eval.run.records import Record, RecordFile, SampleLog, scan_records, write_records
from vlm_guard.eval.run.results import RESULTS_FILE, RUN_FILE, SAMPLES_FILE
from vlm_guard.untrusted.json_files import read_json
from vlm_guard.whole_files import write_atomically

_ABSENT = "absent"
_OTHERS_NAMED = 3


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries, and of lists of dictionaries, with dotted names."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def differing_fields(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted names of the leaves that differ, with both values."""
    left, right = dict(flatten(first)), dict(flatten(second))
    names = list(dict.fromkeys([*left, *right]))
    return [
        (name, left.get(name, _ABSENT), right.get(name, _ABSENT))
        for name in names
        if left.get(name, _ABSENT) != right.get(name, _ABSENT)
    ]


def changed_method_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the files of a combination's methods that held something else before.

    Answers of versions that noted no files count as made with another one: nothing says that they were not.
    """
    listed = before.get("methods")
    known = [item.get("file") for item in listed if isinstance(item, Mapping)] if isinstance(listed, list) else []
    files = [item["file"] for item in now.get("methods", []) if "file" in item]
    return [file["file"] for file in files if file not in known]


def other_fields(differing: Sequence[tuple[str, Any, Any]]) -> str:
    """The names of the fields that differ besides the first, the first few of many, in brackets; "" without any."""
    names = [name for name, _, _ in differing[1:]]
    if not names:
        return ""
    more = f" and {len(names) - _OTHERS_NAMED} more" if len(names) > _OTHERS_NAMED else ""
    return f" (also {', '.join(names[:_OTHERS_NAMED])}{more})"


class MethodFolder:
    """The folder of one method's records.

    Args:
        folder: `OUT/<method>`.
        fingerprint: everything that decides the answers of this run, as JSON can hold it.
        label: what tables call the method.

    Attributes:
        records: the records that belong to the run, by sample key, once `collect` has been called.
        sessions: when the records were worked on, by whom.
        planned: how many samples of every task the run asks.
        damaged: a sentence for every damaged line that was found and taken out, naming file and line.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], label: str) -> None:
        self.folder = folder
        self.label = label
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.records: dict[str, Record] = {}
        self.sessions: list[dict[str, Any]] = []
        self.damaged: list[str] = []
        self.planned: dict[str, int] = {}

    @property
    def samples_path(self) -> Path:
        """The merged records."""
        return self.folder / SAMPLES_FILE

    def shard_path(self, group: ProcessGroup) -> Path:
        """Where this process appends."""
        return self.samples_path if group.size == 1 else self.folder / f"samples.rank-{group.rank}.jsonl"

    def check(self, *, resume: bool) -> None:
        """Look at what an earlier run left here; with `resume` off it is removed.

        Raises:
            ValueError: the records there were made with other settings; the message names the differing field.
        """
        path = self.folder / RUN_FILE
        if not resume:
            (self.folder.parent / RESULTS_FILE).unlink(missing_ok=True)
            for old in (path, *self.folder.glob("samples*.jsonl")):
                old.unlink(missing_ok=True)
        if path.exists():
            try:
                known = read_json(path)
                fingerprint, self.sessions = known["fingerprint"], list(known["sessions"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error}); start anew with --no-resume") from error
            differing = differing_fields(fingerprint, self.fingerprint)
            changed = changed_method_files(fingerprint, self.fingerprint)
            if changed:
                raise ValueError(
                    f"{' and '.join(changed)} has changed since the answers in {self.folder} were made; give another "
                    "--out, or --no-resume to delete them"
                )
            if differing:
                name, before, now = differing[0]
                more = other_fields(differing)
                raise ValueError(
                    f"{self.folder} holds a run with other settings: {name} was {before!r} and is now {now!r}{more}. "
                    "Give another --out, or --no-resume to delete those records and start anew"
                )
        elif any(self.folder.glob("samples*.jsonl")):
            raise ValueError(f"{self.folder} holds records without {RUN_FILE}; give another --out or --no-resume")

    def collect(self, group: ProcessGroup, order: Sequence[str]) -> None:
        """Bring the records of all processes together in `samples.jsonl`, in the order of the samples.

        Every process hands in the files it can see, so shards are found on a shared disk and on a machine's own.
        Damaged lines are taken out, with a warning, so that their samples are asked again; so are second records of one
        sample and records of samples that are none of this run's.
        """
        shards = sorted(self.folder.glob("samples.rank-*.jsonl")) if self.folder.is_dir() else []
        own = scan_records(self.samples_path)
        local = _together([own, *map(scan_records, shards)])
        seen = group.gather((local.records, local.damaged))
        merged: dict[str, Record] = {}
        for records, _ in reversed(seen):
            merged |= records
        self.records = {key: merged[key] for key in order if key in merged}
        new = list(dict.fromkeys(sentence for _, damaged in seen for sentence in damaged))
        self.damaged += new
        if group.is_main:
            if new:
                warnings.warn(f"{'; '.join(new)}; what stood there counts as not yet asked", stacklevel=2)
            whole = own.lines == len(self.records) and list(own.records) == list(self.records)
            if shards or group.size > 1 or not whole:
                write_records(self.samples_path, self.records.values())
        group.barrier()
        for path in shards:
            path.unlink(missing_ok=True)
        if group.is_main:
            SampleLog(self.samples_path).close()  # cuts off a torn last line
        group.barrier()

    def save_sessions(self) -> None:
        """Write fingerprint and sessions, atomically."""
        content = {"label": self.label, "planned": self.planned, "fingerprint": self.fingerprint}
        content["sessions"] = self.sessions
        write_atomically(self.folder / RUN_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _together(files: Sequence[RecordFile]) -> RecordFile:
    """The records of several files, later ones on top, and what was damaged in any."""
    whole = RecordFile()
    for file in files:
        whole.records |= file.records
        whole.damaged += file.damaged
    return whole
