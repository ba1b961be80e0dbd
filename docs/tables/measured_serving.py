"""What guards cost inside vLLM, and what an hour of random load gave, read from committed result files."""

import json
from pathlib import Path
from typing import Any

from measured_table import ROOT, TIMINGS
from vlm_guard.method.registry import resolve_methods

# Of the plain model's throughput: what the project set out to keep of it.
_GOAL, _GOAL_OF_CONTRASTS = 0.85, 0.70


def serving_markdown() -> str:
    """Every measured model with its table, then the load."""
    parts = [_throughput(path) for path in sorted(TIMINGS.glob("serving_*.json")) if "load" not in path.name]
    parts += [_mentions(path) for path in sorted(TIMINGS.glob("mentions_*.json"))]
    return "\n".join([*parts, *(_load(path) for path in sorted(TIMINGS.glob("serving_load*.json")))])


def _throughput(path: Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, engine = result["machine"], result["engine"]
    versions = machine["versions"]
    counts = list(result["plain_tokens_per_second"])
    plain = ", ".join(f"{rate} at {count}" for count, rate in result["plain_tokens_per_second"].items())
    memory = ", ".join(f"{size} MiB {name}" for name, size in result["peak_memory_mib"].items())
    lines = [
        f"`{result['model']}`, {engine['dtype']}: share of the plain model's throughput in the same engine, median of "
        f"{result['rounds']} rounds (20th to 80th percentile), answers of {result['new_tokens']} tokens. "
        f"Bold: what the project wants, at least {_GOAL:.2f} for edits of attention and {_GOAL_OF_CONTRASTS:.2f} for "
        "contrasts.",
        "",
        f"| method | {' | '.join(f'{count} at once' for count in counts)} | of transformers' batch of {counts[-1]} |",
        f"|---|{'---|' * (len(counts) + 1)}",
    ]
    for name, shares in result["share_of_plain"].items():
        contrasts = any(method.contrasts() for method in resolve_methods(name))
        cells = [_share(shares[count], _GOAL_OF_CONTRASTS if contrasts else _GOAL) for count in counts]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {result['times_transformers'][name]:.1f}x |")
    lines += [
        f"| none | 1 | {' | '.join('1' for _ in counts[1:])} | {result['times_transformers']['none']:.1f}x |",
        "",
        f"The plain model: {plain} tokens/s. Peak memory of the process: {memory}. {machine['processor']}, "
        f"{machine['torch_threads']} threads, torch {versions['torch']}, vLLM {versions['vllm']}, transformers "
        f"{versions['transformers']}; `{result['command']}` ({path.relative_to(ROOT)}).",
        "",
    ]
    return "\n".join(lines)


def _mentions(path: Path) -> str:
    """What scores of mentions take, in times of the captions that they are about."""
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, engine = result["machine"], result["engine"]
    versions = machine["versions"]
    columns = [(where, count) for where in ("inside", "transformers") for count in result[where]]
    names = {"inside": "vLLM", "transformers": "transformers"}
    lines = [
        f"Scores of mentions, `{result['model']}`, {engine['dtype']}: how long they take, in times of the captions of "
        f"drawn scenes that they are about, median of {result['rounds']} rounds (20th to 80th percentile), "
        f"{result['inside'][columns[0][1]]['things_a_caption']:.1f} things a caption.",
        "",
        f"| part | {' | '.join(f'{names[where]}, {count} at once' for where, count in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for part in result["inside"][columns[0][1]]["times_captions"]:
        found = [result[where][count]["times_captions"][part] for where, count in columns]
        cells = [f"{times['median']:.2f} ({times['p20']:.2f}-{times['p80']:.2f})" for times in found]
        lines.append(f"| {part.replace('+', ' and ')} | {' | '.join(cells)} |")
    captions = [f"{result[where][count]['milliseconds_a_caption']['captions']:.0f}" for where, count in columns]
    lines += [
        f"| a caption alone, ms | {' | '.join(captions)} |",
        "",
        f"{machine['processor']}, {machine['torch_threads']} threads, torch {versions['torch']}, vLLM "
        f"{versions['vllm']}, transformers {versions['transformers']}; `{result['command']}` "
        f"({path.relative_to(ROOT)}).",
        "",
    ]
    return "\n".join(lines)


def _share(share: dict[str, float], goal: float) -> str:
    text = f"{share['median']:.2f} ({share['p20']:.2f}-{share['p80']:.2f})"
    return f"**{text}**" if share["median"] >= goal else text


def _load(path: Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    counts: dict[str, Any] = result["counts"]
    kinds = ", ".join(f"{counts[kind]} {words}" for kind, words in _KINDS.items() if kind in counts)
    memory = result["memory_mib"]
    steady = memory[len(memory) // 5 :]
    # The first such run asked for nine methods, and its file does not name them.
    methods = len(result["methods"]) if "methods" in result else 9
    return "\n".join(
        [
            f"Random load on the server of the built-in model, {result['minutes']:g} minutes, {result['clients']} "
            f"clients, {methods} methods and the plain model: {result['requests']} requests ({kinds}); "
            f"{len(result['wrong'])} other than transformers', {counts.get('sent again', 0)} sent again "
            f"because vLLM had lost a picture of a client that left, {result['left_in_the_server']:g} requests left "
            f"in the server, the slowest took {result['slowest_seconds']:g} s. Memory of all its processes: "
            f"{memory[0]} MiB at the start, {steady[0]} MiB after a fifth of the time, {steady[-1]} MiB at the end "
            f"(most: {max(memory)}). {result['machine']['processor']}; `{result['command']}` "
            f"({path.relative_to(ROOT)}).",
            "",
        ]
    )


_KINDS = {
    "whole": "whole answers",
    "short": "cut at a length",
    "stopped": "ended by a stop string",
    "leaves": "clients that left",
    "bad": "refused",
    "scored": "answers scored",
    "leaves_scores": "clients that left their scores",
}
