"""Weights of grounding scores for a profile, and below what score repair acts, from the mentions of finished runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.tasks.grounding.counts import judged
from vlm_guard.eval.tasks.grounding.finders import coco_mentions
from vlm_guard.eval.tasks.grounding.repair_threshold import RECALL_SLACK, repair_threshold
from vlm_guard.eval.tasks.grounding.unlabelled import has_truth
from vlm_guard.families.profiles import Fact
from vlm_guard.grounding.lens import LENS_FACT
from vlm_guard.grounding.score import FACT, REPAIR_FACT, fit_weights, name_of


def weights_facts(folders: Sequence[Path], known: Mapping[str, Fact]) -> dict[str, Fact]:
    """The facts of a profile that turn parts into probabilities and say below which of them repair acts.

    Args:
        folders: of `vlm-guard eval --task grounding`, all of one model, prompt and set of parts; of each the baseline's
            mentions are taken.
        known: what the profile has; weights of other sets of parts stay.

    Raises:
        FileNotFoundError: a folder holds no finished run.
        ValueError: no scored mentions, or runs that do not belong together.
    """
    kind: tuple[Any, ...] | None = None
    mentions = []
    captions: list[tuple[str, Mapping[str, Any]]] = []
    names = []
    for folder in folders:
        compared = compare_runs([folder])
        described = compared.results.tasks.get("grounding")
        if described is None:
            raise ValueError(
                f"{folder} has no grounding scores; run 'vlm-guard eval --task grounding --out {folder}' first"
            )
        own = compared.results.model["name"], described["parts"], described.get("lens_layers")
        if kind is not None and own != kind:
            raise ValueError(
                f"{folder} was made with another model, other parts or other lens layers than {folders[0]}; give runs "
                "of one kind"
            )
        kind = own
        names.append(f"{compared.results.data['name']} ({compared.results.data['images']} pictures)")
        records = compared.records[compared.results.baseline]
        answered = [record for record in records if record["task"] == "grounding" and "error" not in record]
        if not all(has_truth(record["score"]) for record in answered):
            raise ValueError(
                f"{folder} is about pictures without labels, so nobody knows which mentions are wrong and no "
                "weights can be fitted; give a run on --data coco:FOLDER or scenes:SPLIT"
            )
        captions += [(record["text"], record["score"]) for record in answered]
    if kind is None:
        raise ValueError("give at least one folder that 'vlm-guard eval --task grounding' has written")
    _, parts, layers = kind
    mentions = [mention for _, score in captions for mention in judged(score)]
    fitted = fit_weights(
        [{part: mention.values[part] for part in parts} for mention in mentions],
        [mention.good for mention in mentions],
    )
    rounded = {name: round(value, 4) for name, value in fitted.items()}
    wrong = sum(not mention.good for mention in mentions)
    runs = " and ".join(names)
    note = f"logistic regression on {len(mentions)} mentions, {wrong} of them wrong, of {runs}"
    # Labelled pictures know MSCOCO's objects only.
    below = repair_threshold(captions, rounded, coco_mentions)
    repair_note = f"the highest that costs at most {100 * RECALL_SLACK:g} points of recall on {runs}"
    # Weights belong to the layers that were read.
    chosen = {LENS_FACT: Fact(value=layers, source="calibrated", note=f"given to {runs}")} if layers else {}
    return chosen | {
        FACT: _with(known.get(FACT), parts, rounded, note),
        REPAIR_FACT: _with(known.get(REPAIR_FACT), parts, below, repair_note),
    }


def _with(known: Fact | None, parts: Sequence[str], value: Any, note: str) -> Fact:
    """The fact with the value for a set of parts."""
    values = {} if known is None else dict(known.value)
    return Fact(value=values | {name_of(parts): value}, source="calibrated", note=note)
