"""Is a backend exact? Problems of many shapes, their error against float64, and the error they may have.

The budget of a backend is the error that the eager reference itself makes in the same dtype, plus a rounding term that
is derived, not tuned (`rounding_terms`). `check_case` compares one case; the tests and `benchmark --gpu-check` run
many. Run as a module it prints one JSON line per case.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.benchmark.cases import Case, build_problem, interpreter_cases, torch_cases, whole_grid
from vlm_guard.kernels.benchmark.random_cases import random_cases
from vlm_guard.kernels.edited_attention import AttentionProblem, EditedAttention, KeyBlocks, load_backend
from vlm_guard.kernels.policies import MoveSinksToContent, MoveSinksToRest
from vlm_guard.kernels.reference import reference_attention

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A mass that float32 cannot tell from 0 may fall on either side of "greater than 0".
VANISHING_MASS = 1e-30
# Below this no score of a key is meant that a row may see.
LOWEST_SCORE = -1e30


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Largest absolute errors of one case and what they may be, by quantity; rows left out because a policy ties."""

    case: str
    dtype: str
    errors: dict[str, float]
    budgets: dict[str, float]
    rows: int
    tied_rows: int

    @property
    def passed(self) -> bool:
        """Whether every error is finite and within its budget."""
        return all(math.isfinite(error) and error <= self.budgets[name] for name, error in self.errors.items())


def in_float64(problem: AttentionProblem) -> AttentionProblem:
    """The same problem with every floating-point tensor in float64 (edit tensors included)."""

    def widen(value: object) -> object:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    # The fields are read by name, so what they hold is only known to be what they held before.
    of_edit: dict[str, Any] = {field.name: widen(getattr(problem.edit, field.name)) for field in fields(AttentionEdit)}
    values: dict[str, Any] = {field.name: widen(getattr(problem, field.name)) for field in fields(AttentionProblem)}
    return AttentionProblem(**(values | {"edit": AttentionEdit(**of_edit)}))


@dataclass(frozen=True, kw_only=True)
class RoundingTerms:
    """Bounds of what rounding can do to each quantity, absolute."""

    output: float
    masses: float
    weights: float
    logsumexp: float


def rounding_terms(problem: AttentionProblem, exact: EditedAttention, rounds_scores: bool) -> RoundingTerms:
    """Bounds from the sizes and the dtype alone.

    With u the unit roundoff of float32, w that of the inputs' dtype:
    - a dot product of D terms accumulated in float32 is off by at most (D + 1) u sum |q k|; each of the at most 14
      operations that follow (scaling, soft cap, bias, gain, slope, mask, change to base 2, subtraction of the maximum)
      by u times the largest score; a backend that stores the products in the inputs' dtype (`rounds_scores`) by w times
      it. Call the sum `shift`: it moves a weight by a factor of at most e^(2 shift).
    - sums over K keys in float32 add K u, the exponentials and divisions some 8 u; a policy divides one mass by another
      and multiplies by the result, so it at most triples a relative error.
    - the weights are rounded to the inputs' dtype before they meet the values (w times the sum of |a v|; float16 also
      loses up to 2^-25 of each weight to underflow), and the output once more when it is stored.
    """
    narrow = torch.finfo(problem.query.dtype).eps / 2
    unit = torch.finfo(torch.float32).eps / 2
    head_dim, keys = problem.key.shape[-1], problem.key.shape[2]
    per_group = problem.query.shape[1] // problem.key.shape[1]
    key = problem.key.double().repeat_interleave(per_group, 1)
    products = (problem.query.double().abs() @ key.abs().transpose(-1, -2)).max().item() * abs(problem.scaling)
    largest = products
    for term in (problem.position_bias, problem.edit.bias, problem.mask):
        if term is not None and term.is_floating_point():
            largest += term.double().masked_fill(term < -1e30, 0).abs().max().item()
    factors = (term for term in (problem.edit.gain, problem.edit.slope) if term is not None)
    largest *= 1 + sum(factor.abs().max().item() for factor in factors)
    shift = (head_dim + 1) * unit * products + 14 * unit * largest
    if rounds_scores:
        shift += narrow * 2 * largest
    relative = math.expm1(min(2 * shift, 600.0)) + (keys + 8) * unit
    if problem.edit.policy is not None:
        relative *= 3
    value = problem.value.double().repeat_interleave(per_group, 1)
    weights = exact.asked_weights().abs()
    of_values = (weights @ value.abs()).max().item()
    own = 0.0 if problem.own_value is None else problem.own_value.abs().max().item()
    head_scale = 1.0 if problem.edit.head_scale is None else problem.edit.head_scale.abs().max().item()
    underflow = keys * 2.0**-25 * value.abs().max().item() if problem.query.dtype == torch.float16 else 0.0
    output = (relative + narrow) * of_values + underflow + narrow * max(of_values, own) + 4 * unit * own
    return RoundingTerms(
        output=output * max(1.0, head_scale),
        masses=relative,
        weights=relative * weights.max().item(),
        logsumexp=shift + (keys + 8) * unit + 4 * unit * exact.asked_logsumexp().nan_to_num(0, 0, 0).abs().max().item(),
    )


def tied_rows(problem: AttentionProblem, masses: Tensor | None, tolerance: float) -> Tensor:
    """[B, H, R] bool: rows where rounding may decide whether the policy acts.

    A row ties when no condition of the policy clearly fails and one of them lies within `tolerance` of its threshold.
    """
    policy = problem.edit.policy
    if masses is None or not isinstance(policy, MoveSinksToContent | MoveSinksToRest):
        return torch.zeros(problem.query.shape[:3], dtype=torch.bool, device=problem.query.device)
    text, text_sink, visual_sink, content = masses.unbind(-1)
    if isinstance(policy, MoveSinksToContent):
        visual = visual_sink + content
        margins = [visual - policy.min_visual_mass, content - policy.min_content_share * visual]
        positive = [visual_sink, content]
    else:
        margins, positive = [], [text + content, text_sink + visual_sink]
    fails = torch.stack([margin < -tolerance for margin in margins] + [mass == 0 for mass in positive]).any(0)
    unsure = [margin.abs() <= tolerance for margin in margins] + [mass < VANISHING_MASS for mass in positive]
    return torch.stack(unsure).any(0) & ~fails


def in_blocks(problem: AttentionProblem, size: int) -> AttentionProblem:
    """The same problem with its keys and values in blocks of `size` in any order, among blocks of noise."""
    batch, _, keys, _ = problem.key.shape
    count = -(-keys // size)
    generator = torch.Generator().manual_seed(batch * 1000 + keys)
    order = torch.randperm(batch * count + 2, generator=generator)[: batch * count].view(batch, count)
    table = order.to(torch.int32).to(problem.key.device)

    def scatter(given: Tensor) -> Tensor:
        whole = torch.nn.functional.pad(given, (0, 0, 0, count * size - keys), value=3.0)
        parts = whole.unflatten(2, (count, size)).transpose(1, 2)
        blocks = torch.full_like(parts[:1, 0], 7.0).repeat(batch * count + 2, 1, 1, 1)
        blocks[table.long().flatten()] = parts.flatten(0, 1)
        return blocks

    blocks = KeyBlocks(table=table, keys=keys)
    return replace(problem, key=scatter(problem.key), value=scatter(problem.value), blocks=blocks)


def check_case(
    case: Case, dtype: torch.dtype, device: torch.device, backend: str, block_size: int | None = None
) -> Comparison:
    """Errors of one backend on one case, against float64, with their budgets.

    Args:
        case: sizes and edits.
        dtype: of the inputs.
        device: where it runs.
        backend: which is checked.
        block_size: give it keys and values in blocks of so many.
    """
    problem = replace(build_problem(case, dtype, device), return_weights=True)
    exact = reference_attention(in_float64(problem))
    eager = reference_attention(problem)
    given = load_backend(backend)(problem if block_size is None else in_blocks(problem, block_size))
    # The torch backend, like eager attention, rounds q.k to the inputs' dtype; the fused kernels keep float32.
    terms = rounding_terms(problem, exact, rounds_scores=backend == "torch")
    # Masses have a budget of their own, so the error they were measured to have says which rows may tie.
    tolerance = 0.0
    if exact.masses is not None:
        found = [masses for masses in (eager.masses, given.masses) if masses is not None]
        tolerance = max(_largest(masses, exact.masses) for masses in found)
    tied = tied_rows(problem, exact.masses, tolerance)
    # Next to a model's lowest number the logarithm of the number of keys is lost, so such a row, which attends evenly
    # to what is masked everywhere, has no logsumexp that anything could be told from: the weights of the fused kernels
    # too.
    logsumexp = exact.asked_logsumexp()
    unseen = logsumexp.isfinite() & (logsumexp < LOWEST_SCORE)
    errors, budgets = {}, {}
    for name in ("output", "masses", "weights", "logsumexp"):
        wanted, from_eager, from_backend = (getattr(result, name) for result in (exact, eager, given))
        if wanted is None:
            continue
        kept = {
            "output": ~tied.transpose(1, 2),
            "weights": ~tied & ~unseen,
            "masses": torch.ones_like(tied),
            "logsumexp": ~unseen,
        }[name]
        wanted, from_eager, from_backend = wanted[kept], from_eager[kept], from_backend[kept]
        errors[name] = _largest(from_backend, wanted)
        budgets[name] = _largest(from_eager, wanted) + getattr(terms, name)
    return Comparison(
        case=case.name,
        dtype=str(dtype).removeprefix("torch."),
        errors=errors,
        budgets=budgets,
        rows=tied.numel(),
        tied_rows=int(tied.sum()),
    )


def _largest(given: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; equal infinities (fully masked rows) do not differ."""
    if wanted.numel() == 0:
        return 0.0
    difference = (given.double() - wanted.double()).abs()
    return difference.masked_fill(given.double() == wanted.double(), 0).max().item()


def check_many(
    cases: list[tuple[Case, str]], device: torch.device, backend: str, block_size: int | None = None
) -> Iterator[Comparison]:
    """`check_case` for (case, dtype name) pairs."""
    for case, dtype in cases:
        yield check_case(case, DTYPES[dtype], device, backend, block_size)


def find_races(device: torch.device, backend: str, repeats: int = 30) -> list[str]:
    """Cases whose result differs between repeated runs; the kernels have one order of summation, so none may."""
    differing = []
    for case, dtype in whole_grid()[::23]:
        problem = build_problem(case, DTYPES[dtype], device)
        run = load_backend(backend)
        first = run(problem)
        for _ in range(repeats):
            again = run(problem)
            same_output = torch.equal(first.output, again.output)
            if not (same_output and torch.equal(first.asked_logsumexp(), again.asked_logsumexp())):
                differing.append(f"{case.name} {dtype}")
                break
    return differing


def main() -> None:
    """Check one list of cases and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True, choices=("torch", "triton"))
    parser.add_argument("--cases", required=True, choices=("interpreter", "torch", "grid", "random"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=100, help="random cases to draw")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--part", default="0/1", help="I/N: every Nth case, beginning with case I")
    parser.add_argument("--block-size", type=int, help="keys and values in blocks of so many, as servers keep them")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    lists = {
        "interpreter": interpreter_cases,
        "torch": torch_cases,
        "grid": whole_grid,
        "random": lambda: random_cases(options.count, options.seed),
    }
    chosen, device = lists[options.cases]()[part::parts], torch.device(options.device)
    for comparison in check_many(chosen, device, options.backend, options.block_size):
        line = {field.name: getattr(comparison, field.name) for field in fields(comparison)}
        print(json.dumps(line | {"passed": comparison.passed}), flush=True)


if __name__ == "__main__":
    main()
