"""Read a finished run: what each method changed, and answers that no longer name what is not there.

    vlm-guard eval --data scenes:common --count 50 --task chair --method none --method pai:gain=0.4 --out RUN
    python examples/read_results.py RUN

What the files of a run hold is in docs/results-schema.md.
"""

import sys
from pathlib import Path

from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results


def absent(record: dict) -> set[str]:
    """The objects that an answer names and that are not in the picture."""
    return {mention["node"] for mention in record["score"]["mentions"] if mention["hallucinated"]}


def main(folder: str) -> None:
    """Print differences to the first method, then up to three captions that got better."""
    run = Path(folder)
    results = read_results(run)
    print(f"{results.data['name']}, {results.data['images']} pictures, {results.model['name']}")
    plain, *others = results.methods
    for method in others:
        for name in ("chair_i", "recall", "f1"):
            change = method.difference_to_baseline[name]
            interval = f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
            print(f"{method.label:>14} {name:8} {100 * change.value:+.1f} points ({interval}): {change.verdict}")

        before = read_records(run / plain.directory / "samples.jsonl")[0]
        after = read_records(run / method.directory / "samples.jsonl")[0]
        captions = [key for key, record in before.items() if record["task"] == "chair" and key in after]
        better = [key for key in captions if absent(after[key]) < absent(before[key])]
        for key in better[:3]:
            print(f"  {key} no longer names {', '.join(sorted(absent(before[key]) - absent(after[key])))}")
        print(f"  {len(better)} of {len(captions)} captions name fewer absent objects than before")


if __name__ == "__main__":
    main(*sys.argv[1:])
