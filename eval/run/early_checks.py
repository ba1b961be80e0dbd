"""What is wrong with a run, as far as it can be seen without torch, a model or a look into large files.

Loading takes up to minutes. All mistakes that show earlier are found first and said together.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vlm_guard.builtin_model import is_shipped
from vlm_guard.eval.data.coco import require_annotations
from vlm_guard.eval.data.datasets import KINDS, read_image_ids
from vlm_guard.eval.data.own_pictures import SUFFIXES
from vlm_guard.eval.run.engines.endpoint_settings import base_address, check_settings
from vlm_guard.eval.run.protocols import find_protocol, require_needs
from vlm_guard.eval.run.results import RUN_FILE
from vlm_guard.eval.run.resume import differing_fields
from vlm_guard.eval.run.settings import DTYPE_NAMES, RunSettings, method_directories
from vlm_guard.eval.tasks.chair.scoring import check_mode
from vlm_guard.eval.tasks.shared.registry import data_kinds, task_class
from vlm_guard.families.processor_needs import refuse_missing_folder
from vlm_guard.hub import hub_answers, unreachable
from vlm_guard.method.index import refuse_option, refuse_part
from vlm_guard.method.method_text import MethodPart, is_outside, parse_method_text
from vlm_guard.method.model_choice import AUTO
from vlm_guard.method.registry import method_names
from vlm_guard.untrusted.json_files import read_json

_USER_ERRORS = (ValueError, TypeError, OSError)
_LABELLED = ("scenes", "coco")


class Mistakes(ValueError):
    """All that is wrong with the settings of a run; `problems` has a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def refuse_mistakes(settings: RunSettings, out: Path | None = None) -> None:
    """Look for everything that can be seen to be wrong within seconds.

    Args:
        settings: of the run.
        out: folder of the run, where it is known.

    Raises:
        Mistakes: something is wrong.
    """
    checks: list[Callable[[], None]] = [
        lambda: check_settings(settings, 1),
        lambda: _check_place(settings),
        lambda: _check_dtype(settings),
        lambda: _check_engine(settings),
        *_method_checks(settings),
        lambda: _check_protocol(settings),
        lambda: check_data(settings),
        lambda: _check_annotations(settings),
        lambda: _check_questions(settings),
        lambda: _check_text_mode(settings),
    ]
    if settings.image_list is not None:
        listed = settings.image_list
        checks.append(lambda: _discard(read_image_ids(listed)))
    if out is not None:
        checks.append(lambda: _check_out(settings, out))
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except _USER_ERRORS as error:
            problems.append(str(error))
    if problems:
        raise Mistakes(list(dict.fromkeys(problems)))


def _discard(value: Any) -> None:
    """Something that is made only to see whether it can be."""


def _check_place(settings: RunSettings) -> None:
    """The model's folder, or the server's address."""
    if settings.endpoint is not None:
        base_address(settings.endpoint)
        return
    if is_shipped(settings.model):
        return
    refuse_missing_folder(settings.model)
    folder = Path(settings.model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: it has no config.json")
    else:
        _check_hub(settings.model, settings.revision)


def _check_hub(name: str, revision: str | None) -> None:
    """Whether a model that is no folder is in the cache, or the hub can be asked for it."""
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except ValueError:  # no id of the hub: loading says so
        return
    if not cached and not hub_answers():
        raise FileNotFoundError(f"there is no model {name!r} here: {unreachable()}")


def _check_dtype(settings: RunSettings) -> None:
    if settings.dtype not in ("auto", *DTYPE_NAMES):
        raise ValueError(f"dtype is {settings.dtype!r}; allowed: auto, {', '.join(DTYPE_NAMES)}")


def _check_engine(settings: RunSettings) -> None:
    if settings.engine != "vllm" and settings.max_model_len is not None:
        raise ValueError("--max-model-len is for vLLM's engine; give --engine vllm, too")
    if settings.pack_weights and settings.device not in ("auto", "cpu"):
        raise ValueError(f"--pack-weights is for the CPU, and --device is {settings.device}; give one of the two")
    if settings.pack_weights and settings.dtype == "float16":
        raise ValueError("--pack-weights is for float32 and bfloat16, and --dtype is float16")


def _method_checks(settings: RunSettings) -> Iterator[Callable[[], None]]:
    """Names and options of methods, each by itself; a server knows methods of its own."""
    yield lambda: _discard(method_directories(settings.methods))
    if settings.endpoint is not None:
        return
    parts: list[MethodPart] = []
    for text in settings.methods:
        try:
            parts += parse_method_text(text, [*method_names(), AUTO])
        except ValueError as error:
            yield partial(_raise, error)
    for part in parts:
        yield partial(refuse_part, part)
    names = {part.reference for part in parts} - {"none"}
    if not any(is_outside(name) for name in names):
        for option, value in settings.options.items():
            yield partial(_check_option, option, value, names)


def _raise(error: Exception) -> None:
    raise error


def _check_option(option: str, value: Any, names: set[str]) -> None:
    name, dot, own = option.partition(".")
    if not dot:
        if len(names) != 1:
            raise ValueError(f"option {option!r}: say which method it is for, for example 'var.{option}'")
        (name,), own = names, option
    if name not in names:
        raise ValueError(f"option {option!r} fits no method of this run ({', '.join(sorted(names)) or 'none'})")
    if name in method_names():
        refuse_option(name, own, value)


def _check_protocol(settings: RunSettings) -> None:
    if settings.protocol is not None:
        require_needs(find_protocol(settings.protocol), settings)


def check_data(settings: RunSettings) -> None:
    """Whether there is such a kind of data, whether the tasks can be asked about it, and what it takes as options.

    Raises:
        ValueError: one of these is not so; the message says what to give instead.
    """
    kind = settings.data.partition(":")[0]
    opened_by_tasks = {} if kind in KINDS else data_kinds()
    if kind not in KINDS and kind not in opened_by_tasks:
        others = "".join(f", {task.data_help.split(',')[0]} (task {task.name})" for task in opened_by_tasks.values())
        raise ValueError(
            f"unknown data {settings.data!r}; {_meant(settings.data)}give scenes:SPLIT[:SEED], coco:FOLDER, "
            f"folder:FOLDER{others}"
        )
    for name in settings.tasks:
        task = task_class(name)
        if kind not in task.data_kinds:
            raise ValueError(
                f"the task {name} cannot be asked about --data {settings.data}; it needs {task.data_help} (vlm-guard "
                f"tasks {name} says more)"
            )
    if kind not in KINDS:
        for option, given in (("--image-list", settings.image_list), ("--split", settings.split)):
            if given is not None:
                raise ValueError(f"{option} is for MSCOCO folders and scenes; --data {kind}:... takes --count")


def _meant(data: str) -> str:
    """The question what a folder without the kind in front is meant as; "" where it is none that is known."""
    folder = Path(data)
    if not data or not folder.is_dir():
        return ""
    if next(folder.glob("annotations/instances_*.json"), None) is not None:
        return f"did you mean coco:{data}? Else "
    if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        return f"did you mean folder:{data}? Else "
    return ""


def _check_annotations(settings: RunSettings) -> None:
    kind, _, place = settings.data.partition(":")
    if kind == "coco" and place:
        require_annotations(place, settings.split)
    elif kind == "scenes":
        from vlm_guard.eval.scenes import parse_scenes_spec

        parse_scenes_spec(settings.data)


def _check_questions(settings: RunSettings) -> None:
    """The question files of tasks, where they are there, can be read."""
    for name in settings.tasks:
        task_class(name).asked_images(settings.of_task(name))


def _check_text_mode(settings: RunSettings) -> None:
    """CHAIR's way to read captions, which the data are read with, and NLTK's data where it needs them."""
    if settings.data.partition(":")[0] in _LABELLED:
        check_mode(settings.chair_mode)


def _check_out(settings: RunSettings, out: Path) -> None:
    """Whether `out` holds records that were made otherwise, as far as the settings alone tell.

    Raises:
        ValueError: it does; the message names the first field. NotADirectoryError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; give a folder")
    renewed = [] if settings.resume else method_directories(settings.methods)
    for path in sorted(out.glob(f"*/{RUN_FILE}")):
        if path.parent.name in renewed:
            continue
        try:
            fingerprint = read_json(path)["fingerprint"]
            before = _seen_in(fingerprint, settings)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a damaged file is reported when its records are read, with what can be done about it
        differing = differing_fields(before, _now(settings))
        if differing:
            name, was, now = differing[0]
            raise ValueError(
                f"--out {out} belongs to another run: in {path.parent.name}, {name} was {was!r} and is now {now!r}. "
                "Give another --out to keep both, or the same settings to go on with it"
            )


def _seen_in(fingerprint: Mapping[str, Any], settings: RunSettings) -> dict[str, Any]:
    """Of what decided the records there, what settings tell, too."""
    now = _now(settings)
    decoding = {name: fingerprint["decoding"].get(name, value) for name, value in now["decoding"].items()}
    seen: dict[str, Any] = {"decoding": decoding, "tasks": sorted(fingerprint["tasks"])}
    if "model" in now:
        packed = fingerprint["model"].get("packed_weights", False)
        seen["model"] = {"name": fingerprint["model"]["name"], "packed_weights": packed}
    return seen


def _now(settings: RunSettings) -> dict[str, Any]:
    decoding = {**settings.decoding.model_dump(mode="json"), "seed": settings.seed}
    now: dict[str, Any] = {"decoding": decoding, "tasks": sorted(settings.tasks)}
    if settings.endpoint is None:
        name, folder = settings.model, Path(settings.model)
        shipped = is_shipped(name)
        now["model"] = {
            "name": name.partition(":")[0] if shipped else folder.resolve().name if folder.is_dir() else name,
            "packed_weights": settings.pack_weights,
        }
    return now
