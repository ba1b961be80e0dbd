"""lmms-eval's generation settings (`gen_kwargs`) as arguments of transformers' `generate`."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Where a task says nothing; the value of lmms-eval's own Hugging Face models.
DEFAULT_MAX_NEW_TOKENS = 1024
_SAMPLING = ("temperature", "top_p", "top_k")
_PASSED_ON = ("num_beams", "min_new_tokens", "repetition_penalty", "length_penalty", "no_repeat_ngram_size")
_KNOWN = {"max_new_tokens", "until", "do_sample", "seed", *_SAMPLING, *_PASSED_ON}


@dataclass(frozen=True, kw_only=True)
class TaskDecoding:
    """How the answers of a task are to be generated.

    Attributes:
        arguments: for `generate`, apart from the inputs and the stop strings.
        stop_strings: an answer ends before the first of these.
        seed: set before every batch if the task names one; otherwise lmms-eval's own `--seed` holds.
    """

    arguments: dict[str, Any]
    stop_strings: tuple[str, ...] = ()
    seed: int | None = None

    def cut(self, text: str) -> str:
        """`text` up to the first stop string, without surrounding blanks."""
        ends = [text.find(stop) for stop in self.stop_strings if stop in text]
        return text[: min(ends)].strip() if ends else text.strip()


def read_gen_kwargs(gen_kwargs: Mapping[str, Any]) -> TaskDecoding:
    """The decoding that a task's `gen_kwargs` ask for.

    Temperature 0 (or none) and `do_sample: false` mean greedy; a positive temperature samples unless `do_sample` is
    false. Settings that mean nothing here (`image_aspect_ratio`) are left out with a warning.

    Raises:
        ValueError: the temperature is negative, or `until` is neither a text nor a list of texts.
    """
    unknown = sorted(set(gen_kwargs) - _KNOWN)
    if unknown:
        warnings.warn(f"the model vlm_guard does not use the task's setting {', '.join(unknown)}", stacklevel=2)
    temperature = gen_kwargs.get("temperature")
    if temperature is not None and temperature < 0:
        raise ValueError(f"temperature is {temperature}; allowed: 0 (greedy) and more")
    wanted = gen_kwargs.get("do_sample")
    if temperature is None:
        samples, temperature = bool(wanted), 1.0
    else:
        samples = temperature > 0 and wanted is not False
    arguments: dict[str, Any] = {"do_sample": samples, **dict.fromkeys(_SAMPLING)}
    if samples:
        top_p, top_k = gen_kwargs.get("top_p"), gen_kwargs.get("top_k")
        arguments["temperature"] = float(temperature)
        arguments["top_p"] = 1.0 if top_p is None else float(top_p)
        arguments["top_k"] = 0 if top_k is None else int(top_k)
    arguments.update({name: gen_kwargs[name] for name in _PASSED_ON if gen_kwargs.get(name) is not None})
    limit = gen_kwargs.get("max_new_tokens")
    arguments["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS if limit is None else int(limit)
    seed = gen_kwargs.get("seed")
    return TaskDecoding(
        arguments=arguments, stop_strings=_stop_strings(gen_kwargs), seed=None if seed is None else int(seed)
    )


def _stop_strings(gen_kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    until = gen_kwargs.get("until")
    listed = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(listed, list | tuple) or not all(isinstance(stop, str) for stop in listed):
        raise ValueError(f"until is {until!r}; allowed: a text or a list of texts")
    return tuple(stop for stop in dict.fromkeys(listed) if stop)
