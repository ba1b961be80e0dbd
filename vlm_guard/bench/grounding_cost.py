"""What grounding scores cost: the lens while a prompt is read and per token, the self-check beside a whole answer.

Every measured call has a plain one right beside it, in every other round behind it. The lens is timed as hooks while
`generate` runs, which delay the first token, and as the product with the output embeddings after it, which `generate`
makes when an answer mentions something; once both are counted to the prompt. The self-check asks about five things a
picture behind the keys of a finished answer, as `generate(grounding=True)` does.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from vlm_guard.bench.generate import DTYPES, load_for_timing
from vlm_guard.bench.paired_timing import Seconds, time_beside, time_call
from vlm_guard.bench.random_models import SHAPES
from vlm_guard.builtin_model import is_shipped
from vlm_guard.grounding.lens import PromptLens, VisualStates
from vlm_guard.grounding.presence import self_check
from vlm_guard.grounding.readout import ModelReadout
from vlm_guard.grounding.shared_prompt import AnsweredPrompt
from vlm_guard.guard import Guard, wrap
from vlm_guard.kernels.benchmark.measure import note_on_load, ratio_quantiles, tell_machine

NOUNS = ("dog", "car", "person", "dining table", "bottle")


def benchmark_grounding(
    *,
    model: str = "builtin",
    device: str = "cpu",
    dtype: str | None = None,
    batch: int = 1,
    prompt_tokens: int = 40,
    new_tokens: int = 32,
    rounds: int = 5,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure both parts; the content of a result file.

    Args:
        model: "builtin", "smol" or the name of a random model's shape.
        device: where the model runs.
        dtype: of the weights; by default float32 on the CPU, bfloat16 elsewhere.
        batch: prompts generated for at once.
        prompt_tokens: text tokens of a prompt of a random model, besides its picture.
        new_tokens: tokens of every answer, at least 2.
        rounds: timed calls of each kind; one more of each, not counted, warms up.
        report: called with the machine and a line per ratio.

    Raises:
        ValueError: an unknown model or dtype, or fewer than 2 new tokens.
    """
    where = torch.device(device)
    kind = dtype or ("float32" if where.type == "cpu" else "bfloat16")
    if kind not in DTYPES:
        raise ValueError(f"unknown dtype {kind!r}; bench grounding takes one of {', '.join(DTYPES)}")
    if not is_shipped(model) and model not in SHAPES:
        raise ValueError(f"unknown model {model!r}; available: builtin, smol, {', '.join(SHAPES)}")
    if new_tokens < 2:
        raise ValueError(f"new tokens must be at least 2 to tell decode from prefill, given {new_tokens}")
    loaded, processor, prompts = load_for_timing(model, DTYPES[kind], where, prompt_tokens)
    settings: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    machine = tell_machine(where, report)
    with wrap(loaded, processor, "none") as guard, torch.inference_mode():
        timing = _Timing(guard, prompts, batch, settings)
        pairs = [time_beside(number, timing.plain, timing.with_lens) for number in range(rounds + 1)][1:]
        asked = [time_beside(number, timing.plain, timing.asking) for number in range(rounds + 1)][1:]
        ids = prompts(batch, 0)["input_ids"]
    whole = [plain["prefill"] + plain["decode"] * (new_tokens - 1) for plain, _ in asked]
    ratios = {
        # What somebody waits for the first token; the states are read later, when there are mentions.
        "lens_first_token": ratio_quantiles(
            [lens["prefill"] for _, lens in pairs], [one["prefill"] for one, _ in pairs]
        ),
        "lens_prefill": ratio_quantiles(
            [lens["prefill"] + lens["reading"] for _, lens in pairs], [one["prefill"] for one, _ in pairs]
        ),
        "lens_token": ratio_quantiles([lens["decode"] for _, lens in pairs], [one["decode"] for one, _ in pairs]),
        "self_check": ratio_quantiles([check["whole"] for _, check in asked], whole),
    }
    for name, found in ratios.items():
        report(f"{name:>14} {found['median']:.2f}x, p20 {found['p20']:.2f}, p80 {found['p80']:.2f}")
    command = f"vlm-guard bench grounding --model {model} --batch {batch} --dtype {kind} --new-tokens {new_tokens}"
    return {
        "machine": machine,
        "note": note_on_load(machine),
        "model": model,
        "dtype": kind,
        "batch": batch,
        "prompt_length": ids.shape[1],
        "visual_tokens": int(torch.isin(ids[0].cpu(), torch.tensor(guard.target.architecture.visual_token_ids)).sum()),
        "new_tokens": new_tokens,
        "rounds": rounds,
        "things": len(NOUNS),
        "ratios": ratios,
        "command": f"{command} --rounds {rounds}",
    }


class _Timing:
    """The calls that are timed; each takes the number of its round, which chooses the pictures."""

    def __init__(
        self, guard: Guard, prompts: Callable[[int, int], dict[str, Any]], batch: int, settings: dict[str, Any]
    ) -> None:
        self._guard, self._prompts, self._batch, self._settings = guard, prompts, batch, settings

    def plain(self, number: int) -> Seconds:
        """A plain `generate` call."""
        model = self._guard.target.model
        return time_call(model, self._prompts(self._batch, number), self._settings, model.device)

    def with_lens(self, number: int) -> Seconds:
        """The same with the lens, and what it takes to read the states that it kept."""
        target, inputs = self._guard.target, self._prompts(self._batch, number)
        states = VisualStates.of(target.architecture, profile=target.profile)
        with states.recording(target.architecture, inputs["input_ids"]):
            seconds = time_call(target.model, inputs, self._settings, target.model.device)
        begun = time.perf_counter()
        PromptLens(states, ModelReadout.of(self._guard), self._batch)
        return {**seconds, "reading": time.perf_counter() - begun}

    def asking(self, number: int) -> Seconds:
        """The self-check of five things a row, behind an answer that is not timed."""
        target, inputs = self._guard.target, self._prompts(self._batch, number)
        answered = AnsweredPrompt(target.architecture)
        model: Any = target.model
        with answered.watching(inputs["input_ids"].shape[1]):
            output = model.generate(**inputs, **self._settings, return_dict_in_generate=True)
        answered.cache = output.past_key_values
        begun = time.perf_counter()
        self_check(self._guard, inputs, [list(NOUNS)] * self._batch, answered=answered)
        return {"whole": time.perf_counter() - begun}
