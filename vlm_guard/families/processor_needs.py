"""Which packages a model's processor needs besides transformers, found in its configuration before it is loaded.

Processors that read videos, and some that read pictures, need torchvision; SmolVLM's needs num2words; a tokenizer
without a `tokenizer.json` needs the library of its own format. Nothing but small configuration files is read, from a
folder or from the hub.
"""

import ast
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlm_guard.builtin_model import SMOL
from vlm_guard.hub import hub_answers, why_unreachable

CONFIGS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXAMINED = ("torchvision", "num2words", "sentencepiece", "torchaudio", "mistral_common", "tiktoken")
"""What transformers' processing files ask for with `is_..._available` or `@requires`, and is not installed with it."""
_FORMATS = {
    "tokenizer.model": ("sentencepiece", "protobuf"),
    "tiktoken.model": ("tiktoken",),
    "tekken.json": ("mistral-common",),
}
_SHIPPED = ("builtin", SMOL)
_ALIKE = 0.7
"""How alike a name is to one that it was meant to be: smoll, smo, bultin, built-in; not small, nor gpt2."""
_MODULES = {"protobuf": "google.protobuf", "mistral-common": "mistral_common"}


@dataclass(frozen=True, kw_only=True)
class ProcessorNeeds:
    """What was found out about a checkpoint's processor.

    Attributes:
        model_type: as the configuration says.
        processor: the class that transformers will take; empty where the checkpoint brings its own code.
        reasons: what each needed package is for, by the name pip knows it by.
        notes: what could not be examined.
    """

    model_type: str
    processor: str
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def missing(self) -> dict[str, str]:
        """Why each needed package cannot be used here; empty when all can."""
        found = {package: why_unusable(package) for package in self.reasons}
        return {package: reason for package, reason in found.items() if reason is not None}

    def describe(self) -> dict[str, str]:
        """What `vlm-guard doctor MODEL` prints."""
        missing = self.missing()
        shown = {"model_type": self.model_type, "processor": self.processor or "code of the checkpoint's own"}
        for package, reason in self.reasons.items():
            shown[package] = f"for {reason}: {missing.get(package, 'ready')}"
        for number, line in enumerate(pip_lines(missing), start=1):
            shown["to install" if number == 1 else "and"] = line
        if not missing:
            shown["missing"] = "nothing"
        return shown | {f"note {number}": note for number, note in enumerate(self.notes, start=1)}


def processor_needs(name: str, revision: str | None = None) -> ProcessorNeeds:
    """What the processor of a checkpoint needs.

    Args:
        name: a folder or a Hugging Face id.
        revision: branch, tag or commit of a Hugging Face id.

    Raises:
        FileNotFoundError: a folder without config.json. ValueError: the hub cannot be read, or it is no JSON.
        ImportError: transformers itself cannot be imported; the message says why.
    """
    configs, files = read_checkpoint(name, revision)
    model_type = str(configs["config.json"].get("model_type", ""))
    described = [configs.get(file, {}) for file in CONFIGS[1:3]]
    if any("AutoProcessor" in found.get("auto_map", {}) for found in (*configs.values(),)):
        return ProcessorNeeds(model_type=model_type, processor="", notes=("its processor is code that comes with it",))
    found = _needs(model_type, described)
    if files is None:
        return replace(found, notes=(*found.notes, "its tokenizer was not examined: the hub cannot be reached"))
    reasons = dict(found.reasons)
    if "tokenizer.json" not in files:
        needed = [(file, packages) for file, packages in _FORMATS.items() if file in files]
        for file, packages in needed[:1]:
            reasons |= dict.fromkeys(packages, f"its tokenizer, which is a {file}")
    return replace(found, reasons=reasons)


def type_needs(model_type: str) -> ProcessorNeeds:
    """What the processor of a model type needs where a checkpoint does not say otherwise; nothing is read for it.

    Raises:
        ImportError: transformers itself cannot be imported; the message says why.
    """
    found = _needs(model_type, ())
    note = "only the type was looked at: 'vlm-guard doctor' with a checkpoint also examines its tokenizer"
    return replace(found, notes=(*found.notes, note))


def _needs(model_type: str, described: Sequence[Mapping[str, Any]]) -> ProcessorNeeds:
    """What the processor class and the image processor ask for; `described` are a checkpoint's files on them."""
    notes: list[str] = []
    mappings = _mappings()
    named = next((found["processor_class"] for found in described if found.get("processor_class")), None)
    processor = named or mappings.processors.get(model_type) or ""
    reasons: dict[str, str] = {}
    source = mappings.source_of(processor)
    if source is None:
        notes.append(f"processor class {processor or 'of this model'!r} is not in this release of transformers")
    else:
        reasons |= _reasons_of_class(source, processor)
    picture = next((found for found in map(_image_processor, described) if found), None)
    if "torchvision" not in reasons and mappings.only_torchvision(model_type, picture):
        reasons["torchvision"] = "its image processor"
    return ProcessorNeeds(model_type=model_type, processor=processor, reasons=reasons, notes=tuple(notes))


def refuse_missing_folder(name: str) -> None:
    """Say so when a name can only be a path, as a Hugging Face id is OWNER/NAME, and nothing is there.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the name is neither a folder nor an id, but nearly that of a model that comes with the package.
    """
    if "/" not in name and not Path(name).is_dir():
        first, colon, source = name.partition(":")
        near = get_close_matches(first.lower(), _SHIPPED, n=1, cutoff=_ALIKE)
        if near and first != near[0]:
            meant = near[0] + (colon + source if near[0] == SMOL else "")
            raise ValueError(
                f"there is no model {name!r}; did you mean {meant!r}? A model is 'builtin', 'smol', a folder with a "
                "checkpoint, or a Hugging Face id such as llava-hf/llava-1.5-7b-hf"
            )
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(
            f"there is no folder {name}; a model is 'builtin', 'smol', a folder with a checkpoint, or a Hugging Face "
            "id such as llava-hf/llava-1.5-7b-hf"
        )


def read_checkpoint(name: str, revision: str | None = None) -> tuple[dict[str, dict[str, Any]], set[str] | None]:
    """The small configuration files by name, and the names of all files (None where only a cache could be read).

    Raises:
        FileNotFoundError: no folder, or one without config.json. ValueError: the hub cannot be read, or it is no JSON.
    """
    refuse_missing_folder(name)
    folder, files = Path(name), None
    if folder.is_dir():
        files = {path.name for path in folder.iterdir()}
    else:
        from huggingface_hub import list_repo_files, snapshot_download

        offline = not hub_answers()
        try:
            found = snapshot_download(name, revision=revision, allow_patterns=list(CONFIGS), local_files_only=offline)
            folder = Path(found)
        except (OSError, ValueError) as error:
            why = why_unreachable() if offline and isinstance(error, OSError) else _first_line(error).removesuffix(".")
            raise ValueError(f"the configuration of {name!r} cannot be read: {why}. {_remedy(error)}") from error
        try:
            files = None if offline else set(list_repo_files(name, revision=revision))
        except OSError:
            files = None  # offline: the configuration came from the cache, and the caller says what is not known
    if not (folder / CONFIGS[0]).is_file():
        raise FileNotFoundError(f"{name} is no checkpoint: it has no {CONFIGS[0]}")
    configs = {}
    for file in CONFIGS:
        if (folder / file).is_file():
            try:
                configs[file] = json.loads((folder / file).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file} of {name} is no JSON: {error}") from None
    return configs, files


def _remedy(error: Exception) -> str:
    """What to do about a configuration that the hub did not give."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError | errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return (
            "Give a Hugging Face id (OWNER/NAME), a folder or a model type such as qwen2_5_vl; private and gated "
            "models need a login (hf auth login)"
        )
    return (
        "Without a network give the folder of a downloaded model, or set HF_HUB_OFFLINE=1 for one that is in the "
        "cache; 'vlm-guard doctor' with a model type such as qwen2_5_vl needs neither"
    )


@dataclass(frozen=True, kw_only=True)
class _Mappings:
    """transformers' tables: processor class by model type, and image processors by model type and backend."""

    processors: Mapping[str, str | None]
    images: Mapping[str, Mapping[str, str | None]]
    modules: Path

    def source_of(self, processor: str) -> Path | None:
        """The file with a processor class."""
        if not processor:
            return None
        own = re.compile(rf"^class {re.escape(processor)}\b", re.MULTILINE)
        for path in sorted(self.modules.glob("*/processing_*.py")):
            if own.search(path.read_text(encoding="utf-8")):
                return path
        return None

    def only_torchvision(self, model_type: str, named: str | None) -> bool:
        """Whether the image processor exists for torchvision only, not for Pillow."""
        choices = [self.images[model_type]] if model_type in self.images else []
        if named is not None:
            plain = named.removesuffix("Fast").removesuffix("Pil")
            own = [entry for entry in self.images.values() if entry.get("torchvision") == plain]
            choices = own[:1] or choices
        return bool(choices) and "pil" not in choices[0]


def _mappings() -> _Mappings:
    problem = torchvision_problem()
    if problem:
        raise ImportError(problem)
    processing = import_module("transformers.models.auto.processing_auto")
    images = import_module("transformers.models.auto.image_processing_auto")
    return _Mappings(
        processors=processing.PROCESSOR_MAPPING_NAMES,
        images=images.IMAGE_PROCESSOR_MAPPING_NAMES,
        modules=Path(inspect.getfile(processing)).parents[1],
    )


def torchvision_problem() -> str:
    """What is wrong with an installed torchvision, or an empty text.

    transformers imports it wherever it is installed: when it does not fit torch, hardly anything of transformers can be
    imported, and the error names something else.
    """
    unusable = why_unusable("torchvision") if find_spec("torchvision") is not None else None
    if unusable is None:
        return ""
    line = pip_lines(["torchvision"])[0]
    return (
        f"torchvision is {unusable}; no model can be loaded beside it. Repair it: `{line}`, or "
        "`pip uninstall torchvision` if your model's processor does not need it ('vlm-guard doctor MODEL' says then)"
    )


def _image_processor(config: Mapping[str, Any]) -> str | None:
    return config.get("image_processor_type") or config.get("image_processor", {}).get("image_processor_type")


def _reasons_of_class(path: Path, processor: str) -> dict[str, str]:
    """What the source of a processor class asks for: its parts, its decorators and its file's imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    reasons = {}
    for node in ast.walk(tree):
        checked = node.id if isinstance(node, ast.Name) else ""
        match = re.fullmatch(r"is_(\w+)_available", checked)
        if match and match[1] in EXAMINED:
            reasons[match[1].replace("_", "-")] = "its processor"
    own = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == processor)
    required = [
        item.value for decorator in own.decorator_list for item in ast.walk(decorator) if isinstance(item, ast.Constant)
    ]
    reasons |= {package: "its processor" for package in required if package in EXAMINED}
    starts = [node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    if any(argument.arg == "video_processor" for start in starts for argument in start.args.args):
        reasons["torchvision"] = "its video processor"
    return reasons


def why_unusable(package: str) -> str | None:
    """Why a package cannot be imported, or None when it can; a package is tried by importing it."""
    module = _MODULES.get(package, package)
    try:
        if find_spec(module) is None:
            return "not installed"
    except ModuleNotFoundError:
        return "not installed"
    try:
        import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        release = f" ({metadata.version(package)})" if _has_metadata(package) else ""
        return f"installed{release} but does not work beside torch {_torch_release()}: {_first_line(error)}"
    return None


def pip_lines(packages: Iterable[str]) -> list[str]:
    """The commands that install these packages beside the torch that is here.

    torchvision belongs to one release of torch and to its kind of build; without saying which, pip would replace torch.
    """
    others = [package for package in packages if package != "torchvision"]
    lines = []
    if "torchvision" in packages:
        release = re.match(r"2\.(\d+)", _torch_release())
        wanted = f"torchvision==0.{int(release[1]) + 15}.*" if release else "torchvision"
        index = f" --index-url {CPU_INDEX}" if _torch_release().endswith("+cpu") else ""
        # One of another build counts as installed for pip, and has to be replaced.
        anew = " --force-reinstall --no-deps" if _has_metadata("torchvision") else ""
        lines.append(f"pip install{anew} '{wanted}'{index}")
    return lines + ([f"pip install {' '.join(others)}"] if others else [])


def advice(name: str, revision: str | None = None) -> str:
    """A sentence for a checkpoint that failed to load: what its processor lacks and the pip line, or an empty text."""
    try:
        missing = processor_needs(name, revision).missing()
    except ImportError as error:
        return f" {error}"
    except (ValueError, OSError):
        return ""  # its configuration cannot be read either, which the error itself says
    if not missing:
        return ""
    lacks = ", ".join(f"{package} ({reason})" for package, reason in missing.items())
    lines = " and ".join(f"`{line}`" for line in pip_lines(missing))
    return f" Its processor lacks {lacks}: {lines}"


def _torch_release() -> str:
    return metadata.version("torch") if _has_metadata("torch") else "(missing)"


def _has_metadata(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
