"""Weights of grounding scores for a profile, fitted to the scored mentions of finished runs."""

from collections.abc import Sequence
from pathlib import Path

from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.tasks.grounding.counts import judged
from vlm_guard.eval.tasks.grounding.unlabelled import has_truth
from vlm_guard.families.profiles import Fact
from vlm_guard.grounding.score import FACT, fit_weights


def weights_fact(folders: Sequence[Path], known: Fact | None = None) -> dict[str, Fact]:
    """The fact of a profile that turns parts into probabilities.

    Args:
        folders: of `vlm-guard eval --task grounding`, all of one model, prompt and set of parts; of each the baseline's
            mentions are taken.
        known: the weights that the profile has; those of other sets of parts stay.

    Raises:
        FileNotFoundError: a folder holds no finished run.
        ValueError: no scored mentions, or runs that do not belong together.
    """
    parts: list[str] | None = None
    model = None
    mentions = []
    names = []
    for folder in folders:
        compared = compare_runs([folder])
        described = compared.results.tasks.get("grounding")
        if described is None:
            raise ValueError(
                f"{folder} has no grounding scores; run 'vlm-guard eval --task grounding --out {folder}' first"
            )
        if parts is not None and (described["parts"] != parts or compared.results.model["name"] != model):
            raise ValueError(
                f"{folder} was made with another model or other parts than {folders[0]}; give runs of one kind"
            )
        parts, model = described["parts"], compared.results.model["name"]
        names.append(f"{compared.results.data['name']} ({compared.results.data['images']} pictures)")
        records = compared.records[compared.results.baseline]
        answered = [record for record in records if record["task"] == "grounding" and "error" not in record]
        if not all(has_truth(record["score"]) for record in answered):
            raise ValueError(
                f"{folder} is about pictures without labels, so nobody knows which mentions are wrong and no "
                "weights can be fitted; give a run on --data coco:FOLDER or scenes:SPLIT"
            )
        mentions += [mention for record in answered for mention in judged(record["score"])]
    if parts is None:
        raise ValueError("give at least one folder that 'vlm-guard eval --task grounding' has written")
    fitted = fit_weights(
        [{part: mention.values[part] for part in parts} for mention in mentions],
        [mention.good for mention in mentions],
    )
    rounded = {name: round(value, 4) for name, value in fitted.items()}
    wrong = sum(not mention.good for mention in mentions)
    note = f"logistic regression on {len(mentions)} mentions, {wrong} of them wrong, of {' and '.join(names)}"
    value = {} if known is None else dict(known.value)
    return {FACT: Fact(value=value | {"+".join(sorted(parts)): rounded}, source="calibrated", note=note)}
