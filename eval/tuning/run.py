"""The whole of `vlm-guard tune`: captions of every setting, the plain model's votes on what they name, a choice."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm_guard.calibration.new_profile import new_profile
from vlm_guard.eval.run.decoding import Decoding
from vlm_guard.eval.run.environment import all_versions, hardware
from vlm_guard.eval.run.generation import generate_batch
from vlm_guard.eval.run.models import LoadedModel
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.tasks.chair.scoring import ChairScorer, summarise
from vlm_guard.eval.tuning.candidates import candidates
from vlm_guard.eval.tuning.choice import PLAIN, Caption, Estimate, absent_share, choose, estimate, spearman
from vlm_guard.eval.tuning.pictures import TuningPictures
from vlm_guard.eval.tuning.votes import SELF_CHECK, Votes, collect_votes
from vlm_guard.families.architecture import inference_device
from vlm_guard.families.profiles import Fact, Profile
from vlm_guard.grounding import find_mentions
from vlm_guard.guard import wrap
from vlm_guard.method.model_choice import FACT
from vlm_guard.untrusted.picture_reader import read_picture

PROMPT = "Please describe this image in detail."
# By labels a setting is right if CHAIR_i falls and recall does not by more than this.
RECALL_SLACK = 0.005
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a tuning found.

    Attributes:
        report: as JSON can hold it.
        chosen: the line of the method to use, "none" where none may be chosen.
        reason: why.
    """

    report: dict[str, Any]
    chosen: str
    reason: str


def tune(
    loaded: LoadedModel,
    pictures: TuningPictures,
    *,
    methods: Sequence[str] | None = None,
    prompt: str = PROMPT,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    progress: Progress = lambda what, done, total: None,
) -> Tuning:
    """Choose a method and its setting for a model by pictures alone.

    Args:
        loaded: the model, not guarded.
        pictures: what it describes; annotations, if there are any, are compared with the choice and not used for it.
        methods: as `candidates` takes them; by default all that the model takes.
        prompt: how a description is asked for.
        max_new_tokens: token limit of a caption.
        batch_size: pictures described together.
        progress: told (what is done, how much of it, of how much).

    Raises:
        ValueError: no method to try, or captions that name too little to judge by.
    """
    labels = candidates(loaded.model, loaded.processor, methods)
    batches = _batches(loaded, pictures, prompt, batch_size)
    captions: dict[str, dict[int, Caption]] = {}
    refused: dict[str, str] = {}
    for number, label in enumerate([PLAIN, *labels], 1):
        try:
            captions[label] = _captions(loaded, label, batches, max_new_tokens)
        except ValueError as error:
            if label == PLAIN:
                raise
            refused[label] = str(error)
        progress("settings", number, len(labels) + 1)
    if len(captions) == 1:
        raise ValueError(f"the model took none of the settings: {'; '.join(refused.values()) or 'there are none'}")
    votes = _votes(loaded, batches, captions, len(pictures.files), progress)
    estimates = estimate(captions, votes)
    chosen, reason = choose(estimates, len(pictures.files))
    report = {
        "pictures": {"name": pictures.name, "count": len(pictures.files), "sha256": pictures.fingerprint},
        "prompt": prompt,
        "votes": {kind: votes.thresholds[kind] for kind in votes.kinds},
        "settings": [_described(item) for item in estimates],
        "refused": refused,
        "chosen": chosen,
        "reason": reason,
        "labels": None if pictures.objects is None else _compare(estimates, captions, pictures, chosen),
        "versions": all_versions(),
        "hardware": hardware(),
    }
    return Tuning(report=report, chosen=chosen, reason=reason)


def profile_with_choice(loaded: LoadedModel, name: str, tuning: Tuning, earlier: Profile | None) -> Profile:
    """The model's profile with the choice for `auto`, its estimate and what it rests on.

    Args:
        loaded: the model.
        name: of the profile.
        tuning: what was found.
        earlier: the profile to add it to, if there is one.
    """
    seen = tuning.report["pictures"]
    note = (
        f"chosen without labels by vlm-guard tune on {seen['count']} pictures of {seen['name']} (sha256 "
        f"{seen['sha256'][:16]}): {tuning.reason}"
    )
    fact = Fact(value=tuning.chosen, source="calibrated", note=note)
    return new_profile(loaded.model, name, {FACT: fact}, earlier)


def _batches(
    loaded: LoadedModel, pictures: TuningPictures, prompt: str, size: int
) -> list[tuple[tuple[int, ...], Any]]:
    """The pictures' numbers and the model's inputs, batch by batch, on the CPU."""
    template, numbers = find_template(loaded.processor), list(pictures.files)
    found = []
    for start in range(0, len(numbers), size):
        part = tuple(numbers[start : start + size])
        shown = [read_picture(pictures.files[number]) for number in part]
        found.append((part, template.encode(loaded.processor, shown, [prompt] * len(part))))
    return found


def _captions(
    loaded: LoadedModel, label: str, batches: Sequence[tuple[tuple[int, ...], Any]], max_new_tokens: int
) -> dict[int, Caption]:
    """What a setting says of every picture."""
    found = {}
    with wrap(loaded.model, loaded.processor, label):
        for numbers, inputs in batches:
            answered = generate_batch(loaded.model, loaded.processor, inputs, Decoding(), max_new_tokens, 0)
            for number, answer in zip(numbers, answered.answers, strict=True):
                nouns = tuple(mention.noun for mention in find_mentions(answer.text))
                found[number] = Caption(text=answer.text, nouns=nouns)
    return found


def _votes(
    loaded: LoadedModel,
    batches: Sequence[tuple[tuple[int, ...], Any]],
    captions: Mapping[str, Mapping[int, Caption]],
    total: int,
    progress: Progress,
) -> Votes:
    named: dict[int, set[str]] = {}
    for own in captions.values():
        for picture, caption in own.items():
            named.setdefault(picture, set()).update(caption.nouns)
    plain = {picture: list(dict.fromkeys(caption.nouns)) for picture, caption in captions[PLAIN].items()}
    device, dtype = inference_device(loaded.model), loaded.model.dtype
    moved = [(numbers, inputs.to(device, dtype=dtype)) for numbers, inputs in batches]
    asked = 0

    def report(count: int) -> None:
        nonlocal asked
        asked += count
        progress("votes", asked, total)

    with wrap(loaded.model, loaded.processor, PLAIN) as guard:
        return collect_votes(guard, moved, plain, named, report)


def _described(item: Estimate) -> dict[str, Any]:
    return {
        "setting": item.label,
        "estimates": {name: asdict(value) for name, value in item.values.items()},
        "changes": {name: asdict(value) for name, value in item.changes.items()},
        "objections": list(item.objections),
    }


def _compare(
    estimates: Sequence[Estimate], captions: Mapping[str, Mapping[int, Caption]], pictures: TuningPictures, chosen: str
) -> dict[str, Any]:
    """The choice beside the annotations: the true rank of the chosen setting, and how well the estimate ranks all.

    A setting's true rank is counted among those that keep the recall, by CHAIR_i, the lowest first; "none" is one.
    """
    if pictures.objects is None:
        raise ValueError("these pictures have no annotations to compare with")
    scorer = ChairScorer(pictures.objects, pictures.mode)
    true = {}
    for label, own in captions.items():
        true[label] = summarise((scorer.score(number, caption.text) for number, caption in own.items()), scorer.mode)
    labels = [item.label for item in estimates]
    guessed = [item.values[absent_share(SELF_CHECK)].value for item in estimates]
    correlation = spearman(guessed, [true[label].chair_i for label in labels])
    keeping = [label for label in labels if true[label].recall >= true[PLAIN].recall - RECALL_SLACK]
    order = sorted(keeping, key=lambda label: true[label].chair_i)
    right = chosen in keeping and (true[chosen].chair_i < true[PLAIN].chair_i or (chosen == PLAIN == order[0]))
    return {
        "true_rank": order.index(chosen) + 1 if chosen in keeping else None,
        "keeping_recall": len(keeping),
        "best": order[0],
        "right": right,
        "spearman_chair_i": None if math.isnan(correlation) else correlation,
        "settings": {
            label: {"chair_i": true[label].chair_i, "recall": true[label].recall, "words": true[label].mean_words}
            for label in labels
        },
    }
