"""What may be set for a run inside vLLM (`--engine vllm`), said before anything is loaded."""

from collections.abc import Sequence
from typing import Any

from vlm_guard.eval.run.decoding import CheckpointDecoding, Decoding
from vlm_guard.eval.run.engines.served_mentions import refuse_unserved
from vlm_guard.eval.run.settings import MethodSpec, RunSettings
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.profiles import find_profile
from vlm_guard.method.model_choice import AUTO, choice_of
from vlm_guard.method.registry import read_method_text
from vlm_guard.serving.vllm.declaration import PLAIN, SERVED_PARTS, Declaration
from vlm_guard.serving.vllm.versions import installed_version, refuse_untested

NAME = "vllm"
_REFUSED = {
    "endpoint": "a server answers there; give one of the two",
    "device_map": "vLLM places the weights itself",
    "attention_backend": "vLLM computes attention",
    "pack_weights": "vLLM lays its weights out itself",
}
# Settings of a checkpoint that change no answer of ours, and those that only drawn answers follow.
_WITHOUT_EFFECT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "cache_implementation",
    "return_dict_in_generate",
)
_DRAWN_ONLY = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
# What vLLM calls the others that it follows in the same way.
_FOLLOWED = {"repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}


def check_vllm_settings(settings: RunSettings, processes: int) -> None:
    """Refuse what vLLM cannot do.

    Raises:
        ValueError: there is something; the message says what, and what to do instead.
        ImportError: vLLM is not installed, or in a version that was not tested.
    """
    for name, reason in _REFUSED.items():
        if getattr(settings, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} cannot be used beside --engine vllm: {reason}")
    if settings.device not in ("auto", "cpu"):
        raise ValueError(
            f"--device {settings.device} cannot be used beside --engine vllm: guards run inside vLLM on the CPU only"
        )
    if settings.decoding.num_beams > 1:
        raise ValueError("--num-beams cannot be used beside --engine vllm: guards follow no beams there")
    if processes > 1:
        raise ValueError(f"--engine vllm with {processes} processes: start it once, it uses all cores by itself")
    refuse_unserved(settings, SERVED_PARTS, "--engine vllm")
    for text in settings.methods:
        line = _with_options(text, settings, choice=None)
        if line not in (None, PLAIN):
            Declaration.read(str(line))
    refuse_untested(installed_version())


def offer_texts(settings: RunSettings, specs: Sequence[MethodSpec], model: Any) -> list[str]:
    """What each method of the run is called inside vLLM: its line with all that was set, or `PLAIN`.

    Args:
        settings: of the run.
        specs: its methods.
        model: says what `auto` stands for.

    Raises:
        ValueError: the model's profile has no line for `auto` that can be read.
    """
    choice = None
    if any(AUTO in read_method_text(text)[0] for text in settings.methods):
        choice = choice_of(describe_architecture(model), find_profile(model.config)).text
    return [
        PLAIN
        if all(method.name == PLAIN for method in spec.methods)
        else str(_with_options(spec.label, settings, choice=choice))
        for spec in specs
    ]


def _with_options(text: str, settings: RunSettings, choice: str | None) -> str | None:
    """A method's line with the options that were set for it beside; None where `auto` is in it and not known yet."""
    names, written = read_method_text(text)
    if AUTO in names and choice is None:
        return None
    lines = []
    for name in names:
        # An option without a name belongs to the only method of the run (`parse_methods`).
        shared = {key if "." in key else f"{name}.{key}": value for key, value in settings.options.items()}
        own = {key: value for key, value in (shared | written).items() if key.startswith(f"{name}.")}
        line = f"{name}:{','.join(f'{key}={value}' for key, value in own.items())}" if own else name
        lines.append(choice if name == AUTO and choice is not None else line)
    return "+".join(lines)


def sampling_arguments(decoding: Decoding, own: CheckpointDecoding) -> dict[str, Any]:
    """The arguments of vLLM's `SamplingParams` that choose tokens as `generate` does.

    Args:
        decoding: of the run.
        own: what the checkpoint's generation settings add.

    Raises:
        ValueError: they have something that vLLM does not know.
    """
    # Only what `generate` takes for an end is one, whatever the tokenizer says.
    arguments: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "stop_token_ids": list(own.ends)}
    if decoding.do_sample:
        arguments |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
    for name, value in own.kept.items():
        if name in _FOLLOWED:
            arguments[_FOLLOWED[name]] = value
        elif name not in _WITHOUT_EFFECT and not name.startswith("output_"):
            if name in _DRAWN_ONLY and not decoding.do_sample:
                continue
            raise ValueError(
                f"the checkpoint's generation settings have {name}={value!r}, which vLLM does not follow as "
                "transformers does; run it without --engine vllm"
            )
    return arguments
