"""What a gate saves: a method at every step and at unsure steps only, beside the plain model, on real pictures.

How often a gate opens depends on what a model has to say. So each answer is about a picture that shows something, one
prompt at a time, and ends where the model ends it. Every guarded call has a plain one on the same picture right beside
it, in every other round behind it. Answers may differ in length, so they are compared per token. A second branch reads
its prompt when a gate first opens, which then is part of that one token; so later tokens are given without the longest.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_guard.bench.generate import DTYPES, asking_to_describe
from vlm_guard.bench.paired_timing import time_answer, time_beside
from vlm_guard.builtin_model import builtin, is_shipped
from vlm_guard.guard import wrap
from vlm_guard.kernels.benchmark.measure import note_on_load, ratio_quantiles, tell_machine
from vlm_guard.kernels.packed_linear import pack_linear_layers
from vlm_guard.method.gate import Gate
from vlm_guard.method.hooks import takes_gate
from vlm_guard.method.registry import resolve_methods

if TYPE_CHECKING:
    from PIL import Image

ALWAYS = ""
"""The gate that is always open."""

LEAST_TOKENS = 3
"""Tokens of an answer: the first, the longest of the later ones, and another."""


def benchmark_gates(
    *,
    pictures: "Sequence[Image.Image]",
    method: str,
    gates: Sequence[str],
    model: str = "builtin",
    device: str = "cpu",
    dtype: str | None = None,
    pack_weights: bool = False,
    new_tokens: int = 64,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure a method without a gate and with each; the content of a result file.

    Args:
        pictures: one for every round; the first warms up and does not count.
        method: one method, as for `wrap`, without a gate.
        gates: such as "entropy>0.6"; see `vlm_guard.method.gate`.
        model: "builtin" or "smol".
        device: where the model runs.
        dtype: of the weights; by default float32 on the CPU, bfloat16 elsewhere.
        pack_weights: lay the linear layers out for oneDNN.
        new_tokens: the most that an answer gets.
        report: called with the machine, and a line per gate.

    Raises:
        ValueError: an unknown model or dtype, fewer than 3 pictures or tokens, several methods, one with a gate or that
            takes none, no gate, or a text that is none.
    """
    where = torch.device(device)
    kind = dtype or ("float32" if where.type == "cpu" else "bfloat16")
    if kind not in DTYPES:
        raise ValueError(f"unknown dtype {kind!r}; bench gates takes one of {', '.join(DTYPES)}")
    if not is_shipped(model):
        raise ValueError(f"bench gates needs a model that describes pictures; builtin and smol can, given {model!r}")
    if len(pictures) < 3:
        raise ValueError(f"bench gates needs at least 3 pictures, given {len(pictures)}")
    if new_tokens < LEAST_TOKENS:
        raise ValueError(f"new tokens must be at least {LEAST_TOKENS} to leave out the longest, given {new_tokens}")
    methods = resolve_methods(method, {})
    if len(methods) != 1 or methods[0].gate:
        raise ValueError(f"bench gates takes one method and no gate with it, given {method!r}; gates go into --gate")
    if not takes_gate(methods[0]):
        raise ValueError(f"{methods[0].name} takes no gate: it decides nothing at single steps of an answer")
    if not gates:
        raise ValueError("bench gates needs a gate, for example --gate 'entropy>0.6'; it may be repeated")
    for gate in gates:
        if Gate.read(gate, methods[0].name) is None:
            raise ValueError("a gate is empty; the method without one is measured in any case")
        resolve_methods(method, {"gate": gate})
    machine = tell_machine(where, report)
    loaded, processor = builtin(model, dtype=DTYPES[kind], device=where)
    if pack_weights:
        pack_linear_layers(loaded)
    settings = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": LEAST_TOKENS,
        "do_sample": False,
        "disable_compile": True,
    }
    asked = _Asked(loaded, processor, asking_to_describe(loaded, processor), pictures, settings)
    found: dict[str, list[_Pair]] = {gate: [] for gate in (ALWAYS, *gates)}
    with torch.inference_mode():
        for number in range(len(pictures)):
            for gate, pairs in found.items():
                pair = time_beside(number, asked.answer, asked.guarded(method, gate))
                if number:
                    pairs.append(pair)
        entries = [_described(gate, pairs, found[ALWAYS], asked) for gate, pairs in found.items()]
    for entry in entries:
        report(_line(entry))
    return {
        "machine": machine,
        "note": note_on_load(machine),
        "model": model,
        "dtype": kind,
        "packed_weights": pack_weights,
        "method": method,
        "pictures": len(pictures) - 1,
        "new_tokens": new_tokens,
        "gates": entries,
        "command": shlex.join(
            ["vlm-guard", "bench", "gates", "--model", model, "--dtype", kind, "--method", method]
            + [part for gate in gates for part in ("--gate", gate)]
            + ["--count", str(len(pictures) - 1), "--new-tokens", str(new_tokens)]
            + (["--pack-weights"] if pack_weights else [])
        ),
    }


@dataclass(frozen=True, eq=False)
class _Answer:
    """One answer.

    Attributes:
        inputs: its prompt. ids: [T] its tokens.
        seconds: what each of them took.
    """

    inputs: Mapping[str, Any]
    ids: Tensor
    seconds: Sequence[float]

    def phase(self, name: str) -> float:
        """The seconds of a token: the first one, a later one but for the longest, or one of the whole answer."""
        first, *later = self.seconds
        if name == "first_token":
            return first
        if name == "later_token":
            return (sum(later) - max(later)) / (len(later) - 1)
        return sum(self.seconds) / len(self.seconds)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A model that is asked to describe pictures, one at a time."""

    model: Any
    processor: Any
    ask: Callable[["Sequence[Image.Image]"], dict[str, Any]]
    pictures: "Sequence[Image.Image]"
    settings: Mapping[str, Any]

    def answer(self, number: int) -> _Answer:
        """The answer about a picture, with whatever guards the model."""
        inputs = self.ask([self.pictures[number]])
        begun, times, ids = time_answer(self.model, inputs, self.settings, self.model.device)
        seconds = [stop - start for start, stop in zip([begun, *times], times)]
        return _Answer(inputs, ids[0, inputs["input_ids"].shape[1] :], seconds)

    def guarded(self, method: str, gate: str) -> Callable[[int], _Answer]:
        """The same with a method."""
        options: dict[str, Any] = {"gate": gate} if gate else {}

        def answer(number: int) -> _Answer:
            with wrap(self.model, self.processor, method, **options):
                return self.answer(number)

        return answer

    def plain_logits(self, answer: _Answer) -> Tensor:
        """[T, V] the model's own logits at every token of an answer."""
        ids = answer.inputs["input_ids"]
        whole = {**answer.inputs, "input_ids": torch.cat((ids, answer.ids[None, :-1]), 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        return self.model(**whole).logits[0, ids.shape[1] - 1 :]


_PHASES = "first_token", "later_token", "per_token"
_Pair = tuple[_Answer, _Answer]
"""The plain answer about a picture, and the guarded one."""


def _described(gate: str, pairs: Sequence[_Pair], always: Sequence[_Pair], asked: _Asked) -> dict[str, Any]:
    """What was measured with one gate."""
    plain, guarded = zip(*pairs)
    opened = Gate.read(gate)
    steps = [] if opened is None else [opened.is_open(asked.plain_logits(answer)) for answer in guarded]
    ratios = {
        name: ratio_quantiles(*([answer.phase(name) for answer in side] for side in (guarded, plain)))
        for name in _PHASES
    }
    return {
        "gate": gate,
        "ratios": ratios,
        "open_steps": round(torch.cat(steps).float().mean().item(), 4) if steps else 1.0,
        "answers_as_always": _equal(guarded, [answer for _, answer in always]),
        "answers_as_plain": _equal(guarded, plain),
    }


def _equal(answers: Sequence[_Answer], others: Sequence[_Answer]) -> float:
    """The share of answers with the same tokens."""
    same = [one.ids.tolist() == other.ids.tolist() for one, other in zip(answers, others, strict=True)]
    return round(sum(same) / len(same), 4)


def _line(entry: Mapping[str, Any]) -> str:
    parts = [f"{entry['gate'] or 'at every step':>14}  open {entry['open_steps']:4.0%}"]
    for name, said in zip(_PHASES, ("first token", "later tokens", "answer, per token")):
        ratio = entry["ratios"][name]
        parts.append(f"{said} {ratio['median']:.2f}x ({ratio['p20']:.2f}-{ratio['p80']:.2f})")
    return "  ".join(parts)
