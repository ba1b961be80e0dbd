"""Loading the model of an evaluation: one that comes with the package, a local folder or a Hugging Face id."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_guard.builtin_model import builtin, is_shipped, shipped_folder
from vlm_guard.eval.run.decoding import CheckpointDecoding
from vlm_guard.eval.run.settings import DTYPE_NAMES
from vlm_guard.families.architecture import inference_device
from vlm_guard.families.processor_needs import advice, refuse_missing_folder
from vlm_guard.hub import hub_answers, unreachable
from vlm_guard.kernels.packed_linear import pack_linear_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}
_FULL_HASH_LIMIT = 2**31
_PIECE = 2**20
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready to answer.

    Attributes:
        model: in evaluation mode, on its device.
        processor: pads on the left.
        identity: what results say about the model, see `identify`.
        no_processor: why `processor` is None; empty where there is one.
    """

    model: "PreTrainedModel"
    processor: Any
    identity: dict[str, Any]
    no_processor: str = ""


def choose_device(device: str) -> str:
    """The device to use; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: the device does not exist here.
    """
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
        if torch.device(device).type == "meta":
            raise ValueError("device 'meta' has shapes and no values; give cpu or cuda")
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(dtype: str, device: str) -> torch.dtype | None:
    """The weights' type; "auto" is float32 on the CPU and otherwise the checkpoint's own (None).

    Raises:
        ValueError: unknown name.
    """
    if dtype == "auto":
        return torch.float32 if device == "cpu" else None
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    needs_processor: bool = True,
    pack_weights: bool = False,
) -> LoadedModel:
    """Load a vision-language model with its processor.

    Args:
        name: "builtin", "smol", a folder, or a Hugging Face id such as "llava-hf/llava-1.5-7b-hf".
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", "cuda:1", ...
        revision: branch, tag or commit of a Hugging Face id.
        device_map: spread the weights with accelerate ("auto") instead of moving them to `device`.
        trust_remote_code: run Python code that comes with the checkpoint; never without being asked.
        needs_processor: whether a folder whose processor cannot be loaded is an error; otherwise it is loaded without.
        pack_weights: lay the linear layers out for oneDNN, see `pack_linear_layers`.

    Raises:
        ValueError: the name can be neither found nor loaded (what its processor lacks is said with the line that
            installs it), dtype or device is wrong, or nothing can be packed.
        FileNotFoundError: a folder is given that is not there or not a checkpoint.
    """
    chosen = choose_device(device)
    weights_type = choose_dtype(dtype, chosen)
    no_processor = ""
    if is_shipped(name):
        model, processor = builtin(name, dtype=weights_type, device=chosen)
    else:
        folder = Path(name)
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: it has no config.json")
        refuse_missing_folder(name)
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        offline = not folder.is_dir() and not hub_answers()
        if offline:
            options["local_files_only"] = True
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            try:
                processor = AutoProcessor.from_pretrained(name, **options)
            except (OSError, ValueError, ImportError) as error:
                if needs_processor or not folder.is_dir():
                    raise
                processor, no_processor = None, _reason(error, name, revision)
            model = AutoModelForImageTextToText.from_pretrained(
                name, dtype=weights_type or "auto", device_map=device_map, **options
            )
        except (OSError, ValueError, ImportError) as error:
            if offline and isinstance(error, OSError):
                raise ValueError(f"cannot load {name!r} as a vision-language model: {unreachable()}") from error
            reason = _reason(error, name, revision)
            raise ValueError(f"cannot load {name!r} as a vision-language model: {reason}") from error
        model = model.eval() if device_map is not None else model.eval().to(chosen)
    if processor is not None:
        prepare_processor(processor)
    identity = identify(name, model)
    if pack_weights:
        pack_linear_layers(model)
        # Rounding is another, so answers may be, too; records of both kinds are not mixed.
        identity["packed_weights"] = True
    return LoadedModel(model=model, processor=processor, identity=identity, no_processor=no_processor)


def _reason(error: Exception, name: str, revision: str | None) -> str:
    """Why loading failed, with what the checkpoint's processor lacks where that is known."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    lacks = advice(name, revision) if isinstance(error, ImportError | ValueError) else ""
    return reason.partition(". ")[0].removesuffix(".") + "." + lacks if lacks else reason


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> "PretrainedConfig":
    """The configuration of a model, without its weights; see `load_model` for the arguments.

    Raises:
        ValueError: it can be neither found nor read.
    """
    from transformers import AutoConfig

    if not is_shipped(name):
        refuse_missing_folder(name)
    source = shipped_folder(name) if is_shipped(name) else name
    offline = not Path(source).is_dir() and not hub_answers()
    try:
        return AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code, local_files_only=offline
        )
    except (OSError, ValueError) as error:
        if offline and isinstance(error, OSError):
            raise ValueError(f"cannot read the configuration of {name!r}: {unreachable()}") from error
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(f"cannot read the configuration of {name!r}: {reason}") from error


def generation_settings(source: str, revision: str | None, config: "PretrainedConfig") -> CheckpointDecoding:
    """What a checkpoint's generation settings add to a run's, without loading the checkpoint.

    Args:
        source: a folder or a Hugging Face id.
        revision: of the id.
        config: the model's, which has the settings of checkpoints that keep them there.
    """
    from transformers import GenerationConfig

    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        found = GenerationConfig.from_pretrained(source, **options)
    except OSError:
        found = GenerationConfig.from_model_config(config)
    return CheckpointDecoding.of(found)


def prepare_processor(processor: Any) -> None:
    """Make a processor pad prompts on the left, with the end-of-text token where it has no padding token."""
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def identify(
    name: str, model: "PreTrainedModel", *, dtype: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """Which weights these are, as written into results.

    Args:
        name: of the model, as it was given.
        model: the model, or its shape alone.
        dtype: of the weights, where another engine has them.
        device: the same.

    A local folder is named by its last part, so that no machine's paths get into results, and by a hash of its
    weight files; a Hugging Face model by its id and commit.
    """
    shipped = is_shipped(name)
    folder = shipped_folder(name) if shipped else Path(name)
    local = folder.is_dir()
    return {
        "name": name.partition(":")[0] if shipped else folder.resolve().name if local else name,
        "revision": None if local else getattr(model.config, "_commit_hash", None),
        "weights": hash_weights(folder) if local else None,
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype or str(model.dtype).removeprefix("torch."),
        "device": device or inference_device(model).type,
    }


def hash_weights(folder: Path) -> str:
    """A hash of a folder's weight files, with the way it was computed in front.

    Up to 2 GiB every byte counts ("sha256:"). Beyond, reading everything would cost minutes, so names, sizes and 64
    evenly spread megabytes per file count ("sampled-sha256:"): enough to tell checkpoints apart by accident, not to
    detect tampering.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    full = sum(path.stat().st_size for path in files) <= _FULL_HASH_LIMIT
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        step = _PIECE if full else max(_PIECE, size // 64)
        with path.open("rb") as file:
            for begin in range(0, size, step):
                file.seek(begin)
                digest.update(file.read(_PIECE))
    return f"{'sha256' if full else 'sampled-sha256'}:{digest.hexdigest()}"
