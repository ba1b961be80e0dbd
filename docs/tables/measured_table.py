"""The measured numbers of docs/results.md, read from committed result files and from nothing else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from run_command import run_command
from vlm_guard.bench.generate import NOT_PACKED
from vlm_guard.bench.paired_timing import comes_at_once

ROOT = Path(__file__).resolve().parents[2]
EVALUATIONS = ROOT / "eval" / "results"
TIMINGS = ROOT / "kernels" / "results"
_COLUMNS = (
    ("chair_i", "CHAIR_i"),
    ("chair_s", "CHAIR_s"),
    ("recall", "recall"),
    ("f1", "F1"),
    ("mean_words", "words"),
    ("repetition", "4-gram rep."),
    ("chair.per_100_words", "wrong per 100 words"),
    ("pope.random.f1", "POPE random F1"),
    ("pope.popular.f1", "POPE popular F1"),
    ("pope.adversarial.f1", "POPE adversarial F1"),
    ("pope.mean.yes_ratio", "yes"),
)
# What is a difference to the plain model by itself, after the columns of values.
_FAIR_COLUMNS = (
    ("chair.equal_length.chair_i", "CHAIR_i at equal length"),
    ("pope.over_control.f1", "POPE F1 beyond a shift of yes"),
)


# Shares of what captions mention: for a method whose captions mention next to nothing they say nothing.
_OF_MENTIONS = ("chair_i", "chair_s", "chair.per_100_words", "chair.equal_length.chair_i")


def names_nothing(entry: dict[str, Any]) -> bool:
    """Whether the captions of a method mention hardly any object: fewer than one in ten captions."""
    chair = entry.get("chair") or {}
    return "mentions" in chair and 10 * chair["mentions"] < chair["captions"]


def measured_markdown() -> str:
    """Every evaluation of the built-in model: default options, newer methods on fewer scenes, then chosen options."""
    return _evaluations("builtin_*.json", "fewer_*.json", "tuned_*.json")


def measured_smol_markdown() -> str:
    """Every evaluation of the model with a real language model inside."""
    return _evaluations("smol_*.json")


def _evaluations(*patterns: str) -> str:
    return "\n".join(_evaluation(path) for pattern in patterns for path in sorted(EVALUATIONS.glob(pattern)))


def _evaluation(path: Path) -> str:
    """One table: the value of every method with its 95 % interval, and the paired difference to the first."""
    results = json.loads(path.read_text(encoding="utf-8"))
    methods, data, model = results["methods"], results["data"], results["model"]
    columns = [column for column in _COLUMNS if column[0] in methods[0]["estimates"]]
    fair = [column for column in _FAIR_COLUMNS if any(column[0] in entry["estimates"] for entry in methods)]
    lines = [
        f"`{model['name']}` on `{data['name']}`, {data['images']} scenes, greedy, in percent (words: mean). In "
        "brackets the paired difference to the plain model with its 95 % bootstrap interval, bold where that leaves "
        "out 0.",
        f"`{run_command(results)}` ({path.relative_to(ROOT)})",
        "",
        "| method | " + " | ".join(title for _, title in (*columns, *fair)) + " | tokens/s | peak memory |",
        "|---" * (len(columns) + len(fair) + 3) + "|",
    ]
    lines += [f"| {' | '.join(_evaluation_row(entry, methods[0]['label'], columns, fair))} |" for entry in methods]
    hardware = results["environment"]["hardware"]
    versions = results["environment"]["versions"]
    lines += [
        "",
        f"{hardware['processor']}, {hardware['torch_threads']} threads, torch {versions['torch']}, transformers "
        f"{versions['transformers']}.",
        "",
    ]
    return "\n".join(lines)


def _evaluation_row(
    entry: dict[str, Any], baseline: str, columns: Sequence[tuple[str, str]], fair: Sequence[tuple[str, str]]
) -> Iterable[str]:
    yield f"`{entry['label']}`"
    for name, _ in columns:
        if name in _OF_MENTIONS and names_nothing(entry):
            yield "-"
            continue
        scale = 1 if name.startswith("mean_") or name.endswith("per_100_words") else 100
        value = f"{scale * entry['estimates'][name]['value']:.1f}"
        difference = (entry.get("difference_to_baseline") or {}).get(name)
        if entry["label"] == baseline or difference is None:
            yield value
            continue
        low, change, high = (scale * difference[key] for key in ("low", "value", "high"))
        yield f"{value} {emphasised(f'[{change:+.1f}, {low:+.1f} to {high:+.1f}]', low, high)}"
    for name, _ in fair:
        if (estimate := entry["estimates"].get(name)) is None or (name in _OF_MENTIONS and names_nothing(entry)):
            yield ""
            continue
        low, change, high = (100 * estimate[key] for key in ("low", "value", "high"))
        yield emphasised(f"[{change:+.1f}, {low:+.1f} to {high:+.1f}]", low, high)
    yield f"{entry['cost']['tokens_per_second']:.0f}"
    yield f"{entry['cost']['peak_memory_bytes'] / 2**20:.0f} MiB"


def timings_markdown() -> str:
    """Ratios of a guarded to an unguarded `generate` beside it, median and 20th to 80th percentile."""
    lines = [
        "Guarded against unguarded `generate`, each guarded call beside an unguarded one in one process: median of "
        "the ratios, 20th to 80th percentile in brackets. `vlm-guard bench generate --model MODEL --batch N --method "
        "METHOD --out FILE` (`--method all` for every one), with `--set METHOD.OPTION=VALUE`, `--cache static "
        "--compile` or `--pack-weights` where the table says so. llava-0.3b is a random LLaVA of 18 layers with 576 "
        "visual tokens, given what methods need to know of a model. A star marks runs made while other work ran on "
        "the machine: calls in turn bear that, but the spread is wider.",
        "",
        "| model | weights | batch | method | decode steps | prefill | per token | processor, threads | file |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(TIMINGS.glob("generate_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for entry in result["entries"]:
            if "ratio_to_unguarded" not in entry["decode"]:
                continue
            if comes_at_once(entry):
                ratios = ["-", f"whole answer {ratio_text(entry['answer']['ratio_to_unguarded'])}"]
            else:
                ratios = [ratio_text(entry[part]["ratio_to_unguarded"]) for part in ("prefill", "decode")]
            cells = (
                result["model"],
                entry.get("dtype", result["dtype"]),
                str(result["batch"]),
                _with_options(entry),
                _steps(result),
                *ratios,
                _processor(result),
                str(path.relative_to(ROOT)),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def packed_markdown() -> str:
    """How many times as long the plain model takes without packed weights, each call beside one with them."""
    lines = [
        "| model | processor, threads | weights | prompt, not packed | token, not packed | file |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(TIMINGS.glob("generate_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for entry in result["entries"]:
            if entry["method"] == NOT_PACKED:
                ratios = [ratio_text(entry[phase]["ratio_to_unguarded"]) for phase in ("prefill", "decode")]
                cells = (result["model"], _processor(result), entry["dtype"], *ratios, str(path.relative_to(ROOT)))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def linear_markdown() -> str:
    """One to four rows of a matrix product, ratios to torch's float32 on the same machine."""
    lines = [
        "| processor, threads | weights | rows | float32 | float32, packed | bfloat16 | bfloat16, packed | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(TIMINGS.glob("linear_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for entry in result["entries"]:
            # In files made before packed bfloat16 was measured packed float32 has the library's name.
            packed = "float32 packed" if "float32 packed" in entry else "float32 oneDNN"
            names = (packed, "bfloat16", "bfloat16 packed")
            ratios = [ratio_text(entry[name]["ratio_to_float32"]) if name in entry else "-" for name in names]
            cells = (
                _processor(result),
                f"{entry['outputs']} x {entry['inputs']}",
                str(entry["rows"]),
                f"{entry['float32']['median_s'] * 1e3:.2f} ms",
                *ratios,
                str(path.relative_to(ROOT)),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _processor(result: dict[str, Any]) -> str:
    machine = result["machine"]
    name = machine.get("gpu") or machine["processor"]
    return f"{name}, {machine['torch_threads']}{' *' if result.get('note') else ''}"


def emphasised(text: str, low: float, high: float) -> str:
    """Bold where the interval of a difference leaves out 0."""
    return f"**{text}**" if low > 0 or high < 0 else text


def _with_options(entry: dict[str, Any]) -> str:
    options = entry.get("options") or {}
    chosen = ", ".join(f"{name}={value}" for name, value in options.items())
    method = entry["method"] if entry.get("control") else f"`{entry['method']}`"
    return method + (f" ({chosen})" if chosen else "")


def _steps(result: dict[str, Any]) -> str:
    """How decode steps ran."""
    kind = "compiled, static cache" if result.get("compiled") else f"eager, {result['cache']} cache"
    return f"{kind}, packed weights" if result.get("packed_weights") else kind


def interval_text(estimate: Mapping[str, float]) -> str:
    """An estimate in percent with its interval."""
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def ratio_text(ratio: Mapping[str, float]) -> str:
    """The median of ratios, and where 60 % of them lie."""
    return f"{ratio['median']:.2f}x ({ratio['p20']:.2f} to {ratio['p80']:.2f})"
