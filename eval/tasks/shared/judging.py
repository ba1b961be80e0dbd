"""Tasks whose answers a judge has to read: prompts go out as a file, verdicts come in as a file, no service is called.

`vlm-guard judge RUN --out prompts.jsonl` writes what to ask, `vlm-guard judge RUN --verdicts verdicts.jsonl` reads what
a person or any model said.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlm_guard.eval.tasks.base import Record, Task
from vlm_guard.untrusted.json_files import read_records, text_field
from vlm_guard.untrusted.printed_text import shown

VERDICTS = "verdicts"
"""Field of a score: what the judge said to each of its prompts, by their names."""


class JudgedTask(Task):
    """A task that is scored by verdicts.

    Attributes:
        template: the prompt for the judge, with the fields of `judge_fields` in braces. It is this project's own text;
            numbers by another prompt, such as a release's, or another judge are others.
    """

    template: ClassVar[str]

    @classmethod
    @abstractmethod
    def judge_fields(cls, record: Record) -> Mapping[str, Mapping[str, str]]:
        """What stands in the prompts about an answer, by a name for each prompt."""

    @classmethod
    @abstractmethod
    def read_verdict(cls, text: str) -> Any:
        """What a verdict says, as JSON can hold it; None where it cannot be read."""


def judge_prompts(task: type[JudgedTask], records: Iterable[Record], template: str | None = None) -> dict[str, str]:
    """What to ask the judge about these answers: the prompt by its id, "SAMPLE#NAME".

    Raises:
        ValueError: the template lacks a field, or has one that the task does not fill.
    """
    text = template if template is not None else task.template
    prompts = {}
    for record in records:
        for name, fields in task.judge_fields(record).items():
            missing = [field for field in fields if f"{{{field}}}" not in text]
            if missing:
                named = ", ".join(f"{{{field}}}" for field in fields)
                raise ValueError(f"the judge's template lacks {{{missing[0]}}}; it must contain {named}")
            prompts[f"{record['sample']}#{name}"] = _filled(text, fields)
    return prompts


def _filled(text: str, fields: Mapping[str, str]) -> str:
    """The template with its fields, in one pass: what an answer holds is not filled in again."""
    parts, rest = [], text
    while rest:
        places = {name: rest.find(f"{{{name}}}") for name in fields}
        found = {name: place for name, place in places.items() if place >= 0}
        if not found:
            break
        name = min(found, key=found.__getitem__)
        parts += [rest[: found[name]], fields[name]]
        rest = rest[found[name] + len(name) + 2 :]
    return "".join([*parts, rest])


def read_verdicts(path: str | Path) -> dict[str, str]:
    """Verdicts from a file of records with `id` (of the prompt) and `verdict` (what the judge said).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks one of the two, or an id stands twice.
    """
    verdicts: dict[str, str] = {}
    for number, record in read_records(path):
        where = f"{path}: record {number}"
        key = text_field(record, "id", where)
        if key in verdicts:
            raise ValueError(f"{where} has the id {shown(key)}, which stands in the file before")
        verdicts[key] = text_field(record, "verdict", where)
    if not verdicts:
        raise ValueError(f"{path} has no verdicts")
    return verdicts


def with_verdicts(task: type[JudgedTask], records: Sequence[Record], verdicts: Mapping[str, str]) -> list[Record]:
    """The records with what the judge said to their prompts.

    Args:
        task: the records' task.
        records: answered records of the task.
        verdicts: what the judge said, by the prompt's id.

    Raises:
        ValueError: a prompt has no verdict; the message says how many and names one.
    """
    judged, missing, wanted = [], [], 0
    for record in records:
        keys = {name: f"{record['sample']}#{name}" for name in task.judge_fields(record)}
        wanted += len(keys)
        missing += [key for key in keys.values() if key not in verdicts]
        said = {name: task.read_verdict(verdicts[key]) for name, key in keys.items() if key in verdicts}
        judged.append({**record, "score": {**record["score"], VERDICTS: said}})
    if missing:
        raise ValueError(f"{len(missing)} of {wanted} prompts have no verdict, for example {shown(missing[0])}")
    return judged
