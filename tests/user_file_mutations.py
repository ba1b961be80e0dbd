"""Small valid files of every kind that users bring, and seeded ways to damage them.

`run_damaged` drives the command line on a copy with one damaged file. What may come back is the right exit code with
at most one line of error; anything else is a fault of the program. By hand, in this folder:
`python user_file_mutations.py COUNT [FIRST_SEED]`.
"""

import copy
import gzip
import io
import json
import random
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_records import careful, careless, write_run
from small_coco import make_coco_folder
from task_sources import make_sources

from vlm_guard.cli import main

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    139.0,
    2**70,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "1",
    "2.0",
    " 3 ",
    "x",
    "yes",
    "../../etc/passwd",
    "/etc/passwd",
    "a\x00b",
    "\ud83d",
    "\x1b[31mred\x1b]0;title\x07",
    "=1+1",
    "١٢",
    "n" * 5000,
    [],
    {},
    [[1]],
    {"id": 1},
    ["dog", 3],
    json.loads("[" * 90 + "]" * 90),
    json.loads('{"a":' * 250 + "1" + "}" * 250),
    [None],
)
TEXTS = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 100_000, '{"a":' * 20_000, "\ufeff", "\r\n", "\x00", "}{", ",,")


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies in the folder, and the command that reads it."""

    name: str
    file: str
    command: tuple[str, ...]
    output: str = ""

    @property
    def lines(self) -> bool:
        """Whether every line is a record."""
        return self.file.endswith((".jsonl", "pope_random.json", "coco_repope_popular.json"))


def _chair(*options: str) -> tuple[str, ...]:
    return ("chair", "captions.jsonl", *options, "--per-caption", "out.jsonl")


_PAIR = ("--instances", "coco/annotations/instances_test.json", "--captions", "coco/annotations/captions_test.json")
_EVAL = ("eval", "--data", "coco:coco", "--model", "no-model", "--out", "out", "--config", "settings.yaml")
_OWN = ("--model", "no-model", "--out", "out")
_POPE = ("pope", "answers.jsonl", "--questions", "pope/pope_random.json")


def _asked(task: str, data: str, *options: str) -> tuple[str, ...]:
    return ("eval", "--task", task, "--data", data, "--model", "no-model", "--out", "out", *options)


_AMBER = _asked("amber,amber_generative", "amber:amber", "--set", "amber_generative.vectors=vectors.json")
_BENCHMARKS = (
    Kind("relabelled", "pope/relabelled.jsonl", (*_POPE, "--relabelled", "pope/relabelled.jsonl", "--parsers")),
    Kind("yes/no questions", "choices/asked.jsonl", _asked("yesno", "yesno:choices/asked.jsonl")),
    Kind("choices", "choices/some.jsonl", _asked("mc,modality_interference", "mc:choices/some.jsonl")),
    Kind("DASH-B", "dash/images/dash_benchmark_pos.json", _asked("dash_b", "dash_b:dash")),
    Kind("HallusionBench", "hallusion/HallusionBench.json", _asked("hallusionbench", "hallusionbench:hallusion")),
    Kind("RePOPE", "corrected/annotations/coco_repope_popular.json", _asked("repope", "repope:corrected")),
    Kind("AMBER's annotations", "amber/data/annotations.json", _AMBER),
    Kind("AMBER's descriptions", "amber/data/query/query_generative.json", _AMBER),
    Kind("AMBER's words", "amber/data/relation.json", _AMBER),
    Kind("vectors", "vectors.json", _AMBER),
    Kind("MMHal", "choices/response_template.json", _asked("mmhal", "mmhal:choices")),
    Kind(
        "OpenCHAIR",
        "choices/captions.jsonl",
        _asked("openchair", "openchair:choices/captions.jsonl", "--set", "openchair.concreteness=words.tsv"),
    ),
    Kind(
        "names of objects",
        "names.json",
        _asked("object_halbench", "coco:coco", "--set", "object_halbench.mapping=names.json"),
    ),
    Kind(
        "questions of images",
        "images_asked.jsonl",
        _asked("object_halbench", "coco:coco", "--set", "object_halbench.questions=images_asked.jsonl"),
    ),
)
KINDS = (
    Kind("captions", "captions.jsonl", _chair("--objects", "objects.json"), "out.jsonl"),
    Kind("objects", "objects.json", _chair("--objects", "objects.json"), "out.jsonl"),
    Kind("instances", "coco/annotations/instances_test.json", _chair(*_PAIR), "out.jsonl"),
    Kind("reference captions", "coco/annotations/captions_test.json", _chair("--coco", "coco"), "out.jsonl"),
    Kind("image list of captions", "images.jsonl", _chair("--objects", "objects.json", "--image-list", "images.jsonl")),
    Kind("questions", "pope/pope_random.json", _POPE),
    Kind("answers", "answers.jsonl", _POPE),
    Kind("leading answers", "answers.jsonl", (*_POPE, "--leading", "answers.jsonl", "--json")),
    Kind(
        "instances for questions",
        "coco/annotations/instances_test.json",
        ("pope-questions", "out", "--coco", "coco", "--images", "2"),
    ),
    Kind(
        "objects for questions",
        "objects.json",
        ("pope-questions", "out", "--objects", "objects.json", "--images", "0", "--per-image", "2"),
    ),
    Kind("image list of a run", "images.jsonl", (*_EVAL, "--image-list", "images.jsonl")),
    Kind("settings", "settings.yaml", _EVAL),
    Kind(
        "list of pictures", "coco/list.jsonl", ("eval", "--task", "caption", "--data", "folder:coco/list.jsonl", *_OWN)
    ),
    Kind("own questions", "coco/own.jsonl", ("eval", "--task", "ask", "--data", "questions:coco/own.jsonl", *_OWN)),
    Kind("samples of lmms-eval", "samples.jsonl", ("pope", "samples.jsonl")),
    Kind("answers of ask", "own_answers.jsonl", ("pope", "own_answers.jsonl", "--json")),
    Kind("results for compare", "run/results.json", ("compare", "run", "--resamples", "100")),
    Kind("records for compare", "run/careless/samples.jsonl", ("compare", "run", "--json")),
    Kind("results for a table", "run/results.json", ("table", "run", "--out", "out.md"), "out.md"),
    Kind(
        "records for a table",
        "run/none/samples.jsonl",
        ("table", "run", "--format", "csv", "--out", "out.md"),
        "out.md",
    ),
    Kind("results for a page", "run/results.json", ("report", "run", "--out", "out.html"), "out.html"),
    Kind(
        "records for a page",
        "run/none/samples.jsonl",
        ("report", "run", "--images", "coco", "--out", "out.html"),
        "out.html",
    ),
    Kind("run for a page", "run/none/run.json", ("report", "run", "--out", "out.html"), "out.html"),
    *_BENCHMARKS,
)


def make_folder(folder: Path) -> Path:
    """All the files, whole."""
    make_coco_folder(folder / "coco", images=3)
    write_run(folder / "run", folder / "coco", {"none": careful, "careless": careless}, count=2)
    (folder / "run" / "none" / "run.json").write_text(
        json.dumps({"fingerprint": {}, "sessions": [{"image_folder": str(folder / "coco")}]})
    )
    _write_lines(
        folder / "captions.jsonl", [{"image_id": n, "question_id": n, "caption": "A dog, a cup."} for n in (1, 2)]
    )
    _write_lines(folder / "images.jsonl", [{"question_id": n, "image": f"{n:012d}.png"} for n in (1, 2)])
    (folder / "objects.json").write_text(json.dumps({"1": ["dog", "cat"], "2": ["cup"], "3": ["car", "dog"]}))
    with redirect_stdout(io.StringIO()):
        _exit_code(["pope-questions", str(folder / "pope"), "--coco", str(folder / "coco"), "--images", "2"])
    asked = len((folder / "pope" / "pope_random.json").read_text().splitlines())
    _write_lines(folder / "answers.jsonl", [{"question_id": n, "answer": "Yes"} for n in range(1, asked + 1)])
    relabelled = (folder / "pope" / "pope_random.json").read_text().splitlines(keepends=True)[1:]
    (folder / "pope" / "relabelled.jsonl").write_text("".join(relabelled))
    make_sources(folder)
    (folder / "vectors.json").write_text('{"dog": [1, 0], "puppy": [0.9, 0.1], "sky": [0, 1], "cat": [0.5, 0.5]}')
    (folder / "names.json").write_text('{"dog": ["hound", "sheep dog"], "cat": []}')
    _write_lines(folder / "images_asked.jsonl", [{"image_id": n, "question": "What is there?"} for n in (1, 2)])
    pictures = [f"images/{n:012d}.png" for n in (1, 2)]
    _write_lines(folder / "coco" / "list.jsonl", [{"image": name, "image_id": n} for n, name in enumerate(pictures)])
    own = {"question": "Which?", "options": ["a dog", "a cat"], "answer": "B", "question_id": 4, "extra": {"a": [1]}}
    _write_lines(folder / "coco" / "own.jsonl", [{"image": name, **own} for name in pictures])
    metric = {"question_id": "1", "ground_truth": "yes", "category": "random"}
    sample = {"doc_id": 0, "target": "yes", "filtered_resps": "Yes", "input": "Is it?", "pope_accuracy": metric}
    _write_lines(folder / "samples.jsonl", [sample, sample | {"doc": {"answer": "no"}, "resps": [["Yes"]]}])
    answered = {"question_id": 1, "image": "1.png", "question": "Is it?", "text": "Yes", "label": "yes"}
    _write_lines(folder / "own_answers.jsonl", [{**answered, "method": name} for name in ("none", "var")])
    (folder / "no-model").mkdir()
    (folder / "settings.yaml").write_text(
        json.dumps(
            {
                "methods": ["none", "vcd"],
                "options": {"vcd.strength": 0.5},
                "count": 2,
                "seed": 1,
                "strict": False,
                "pope": {"strategies": ["random"], "per_image": 2},
                "decoding": {"do_sample": True, "temperature": 0.5},
            },
            indent=1,
        )
    )
    return folder


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    found = [path]
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += _places(item, (*path, key))
    return found


def change_value(value: Any, generator: random.Random) -> Any:
    """A copy with one entry replaced, left out, doubled or renamed."""
    made = copy.deepcopy(value)
    place = generator.choice(_places(made))
    if not place:
        return generator.choice(VALUES)
    *way, last = place
    holder = made
    for key in way:
        holder = holder[key]
    action = generator.choice(("replace", "replace", "replace", "drop", "double", "rename"))
    if action == "drop":
        del holder[last]
    elif action == "double" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[last]))
    elif action == "rename" and isinstance(holder, dict):
        holder[generator.choice(("id", "image", "x", "error", "1", "text", "../y"))] = holder.pop(last)
    else:
        holder[last] = copy.deepcopy(generator.choice(VALUES))
    return made


def change_bytes(content: bytes, generator: random.Random) -> bytes:
    """Cut, doubled, re-encoded, or with something put in."""
    place = generator.randrange(len(content) + 1)
    action = generator.choice(("cut", "insert", "insert", "flip", "again", "encode", "empty", "drop", "pack"))
    if action == "cut":
        return content[:place]
    if action == "insert":
        return content[:place] + generator.choice(TEXTS).encode() + content[place:]
    if action == "flip" and content:
        place = min(place, len(content) - 1)
        return content[:place] + bytes([content[place] ^ (1 << generator.randrange(8))]) + content[place + 1 :]
    if action == "again":
        return content + generator.choice((b"", b"\n", b",")) + content
    if action == "encode":
        text = content.decode("utf-8", "replace")
        return generator.choice((text.encode("utf-16"), b"\xef\xbb\xbf" + content, text.replace("\n", "\r\n").encode()))
    if action == "empty":
        return generator.choice((b"", b" \n", b"null", b"[]", b"{}", b"0", b'"text"'))
    if action == "drop":
        return content[:place] + content[place + generator.randrange(1, 20) :]
    return gzip.compress(content)


def damage(content: bytes, lines: bool, generator: random.Random) -> bytes:
    """One damaged form of a file's content."""
    if generator.random() < 0.35:
        return change_bytes(content, generator)
    if lines:
        rows = [json.loads(row) for row in content.decode().splitlines()]
        changed = change_value(rows, generator)
        return "".join(json.dumps(row) + "\n" for row in (changed if isinstance(changed, list) else [changed])).encode()
    value = change_value(json.loads(content), generator)
    if generator.random() < 0.3:
        value = change_value(value, generator)
    return json.dumps(value).encode()


def _exit_code(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else -1
    return -1


def _located(folder: Path, argument: str) -> str:
    """A command's argument with the folder in front where it names a file of it."""
    for between in (":", "="):
        kind, found, rest = argument.partition(between)
        if found and rest and (folder / rest).exists():
            return f"{kind}{between}{folder / rest}"
    known = argument.startswith("out") or (folder / argument).exists()
    return str(folder / argument) if known and not argument.startswith("-") else argument


def run_damaged(whole: Path, folder: Path, kind: Kind, seed: int) -> str:
    """Damage one file of a copy of `whole`, run the command that reads it and say what was wrong with its answer.

    Returns:
        "" for a right end; otherwise the fault, a traceback or a message that is none.
    """
    generator = random.Random(f"{kind.name} {seed}")
    for name in ("out", "out.md", "out.html", "out.jsonl"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    target = folder / kind.file
    original = (whole / kind.file).read_bytes()
    target.write_bytes(damage(original, kind.lines, generator))
    command = [kind.command[0], *(_located(folder, argument) for argument in kind.command[1:])]
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8")
    try:
        with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")), redirect_stderr(errors):
            code = _exit_code(command)
    except Exception:
        return traceback.format_exc()
    finally:
        target.write_bytes(original)
    errors.flush()
    message = errors.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return _fault(code, message, folder, kind)


def _fault(code: int, message: str, folder: Path, kind: Kind) -> str:
    if code == 0:
        return "" if "Traceback" not in message else message
    # A line for each mistake that can be seen; that there is no model is none of the damaged file's.
    lines = message.removesuffix("\n").split("\n")
    lines = [line for line in lines if not line.endswith("no-model is no checkpoint: it has no config.json")] or lines
    if code != 2 or not all(line.startswith("error: ") and len(line) < 1500 for line in lines) or len(lines) > 12:
        return f"exit code {code}: {message!r}"
    if not all(line.isprintable() for line in lines):
        return f"signs that a terminal obeys: {message!r}"
    names = {path.name for path in folder.rglob("*") if path.suffix} | {"no-model"}
    if kind.name != "settings" and not all(any(name in line for name in names) for line in lines):
        return f"names no file: {message!r}"
    if kind.output and (folder / kind.output).exists():
        return f"refused, but wrote {kind.output}: {message!r}"
    if list(folder.rglob("*.partial")):
        return "left a partial file"
    return ""


def run_many(
    folder: Path, count: int, report: Callable[[str], None] = print, first_seed: int = 0
) -> tuple[Counter, list[str]]:
    """`count` damaged files, the kinds in turn; what came of them, and the faults."""
    whole = make_folder(folder / "whole")
    copied = folder / "copy"
    shutil.copytree(whole, copied)
    tried: Counter = Counter()
    faults = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        seed = first_seed + number // len(KINDS)
        fault = run_damaged(whole, copied, kind, seed)
        tried[kind.name, "fault" if fault else "right"] += 1
        if fault:
            faults.append(f"{kind.name}, seed {seed}: {fault}")
            report(faults[-1])
    return tried, faults


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        counted, found = run_many(
            Path(place), int(sys.argv[1]), first_seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0
        )
    for (name, end), number in sorted(counted.items()):
        print(f"{name:<28}{end:<8}{number}")
    print(f"{sum(counted.values())} damaged files, {len(found)} faults")
