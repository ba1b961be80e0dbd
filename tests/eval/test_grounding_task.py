"""The task grounding: its curves against their definitions, its records, its numbers, and weights for a profile."""

import json
import math

import numpy as np
import pytest
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.data.datasets import open_dataset
from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.grounding_weights import weights_facts
from vlm_guard.eval.report.page import build_report
from vlm_guard.eval.report.plots import save_plots
from vlm_guard.eval.report.tables import render_table
from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.run.statistics import ImageCounts, intervals
from vlm_guard.eval.tasks.grounding.counts import JudgedMention, grounding_metrics, judged, mention_counts
from vlm_guard.eval.tasks.grounding.curves import (
    auroc,
    average_precision,
    calibration_error,
    risk_coverage,
    risk_coverage_area,
)
from vlm_guard.eval.tasks.grounding.finders import coco_mentions
from vlm_guard.eval.tasks.grounding.repair_threshold import repair_threshold
from vlm_guard.eval.tasks.grounding.repairing import repair_counts, repair_losses, repair_metrics
from vlm_guard.eval.tasks.grounding.task import GroundingSettings, GroundingTask
from vlm_guard.eval.tasks.grounding.unlabelled import doubt_counts, doubt_metrics, doubt_summary
from vlm_guard.families.profiles import Fact, read_profile
from vlm_guard.grounding.score import REPAIR_BELOW, repair_below_of, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")

# Scores in five bins: 2 good and 1 bad mention in the highest, and so on down.
GOOD, BAD = np.array([0.0, 1, 0, 1, 2]), np.array([2.0, 1, 0, 0, 1])


def test_curves_by_hand():
    # 16 pairs: the bins from above have 2 * (3.5), 1 * (3), 1 * (2.5) pairs in order.
    assert auroc(GOOD, BAD) == pytest.approx((2 * 3.5 + 3 + 2.5) / 16)
    # Bad mentions from below: 2 of 2, then 3 of 4, then 4 of 8 when the last is found.
    assert average_precision(GOOD, BAD) == pytest.approx((2 * 1 + 1 * 3 / 4 + 1 * 4 / 8) / 4)
    coverage, risk = risk_coverage(GOOD, BAD)
    assert coverage.tolist() == pytest.approx([3 / 8, 4 / 8, 4 / 8, 6 / 8, 1])
    assert risk.tolist() == pytest.approx([1 / 3, 1 / 4, 1 / 4, 2 / 6, 4 / 8])
    assert risk_coverage_area(GOOD, BAD) == pytest.approx((3 / 3 + 1 / 4 + 2 * 2 / 6 + 2 * 4 / 8) / 8)
    assert auroc(GOOD, np.zeros(5)) == 0.5, "no pair, no order"
    assert auroc(GOOD, GOOD) == 0.5
    count, score, good = np.array([4.0, 6]), np.array([1.0, 5.4]), np.array([2.0, 5])
    assert calibration_error(count, score, good) == pytest.approx((1 + 0.4) / 10)


def mentions_drawn(pictures: int, seed: int = 0) -> dict[int, list[JudgedMention]]:
    """Mentions whose chance to be wrong rises along the answer, with a score that knows more than that."""
    generator = np.random.default_rng(seed)
    found: dict[int, list[JudgedMention]] = {}
    for picture in range(pictures):
        for fifth in range(5):
            good = bool(generator.random() < 0.95 - 0.15 * fifth)
            odds = float(np.clip(generator.normal(2 if good else -1, 1.5), -11, 11))
            values = {"score": odds, "position": -float(10 * fifth + generator.integers(10))}
            mention = JudgedMention(values=values, good=good, fifth=fifth, score=1 / (1 + math.exp(-odds)))
            found.setdefault(picture, []).append(mention)
    return found


def pairs_in_order(mentions, value, *, same_fifth: bool) -> float:
    """The definition: of all pairs of a good and a bad mention, how many are in order."""
    order, pairs = 0.0, 0
    for one in (mention for mention in mentions if mention.good):
        for other in (mention for mention in mentions if not mention.good):
            if same_fifth and one.fifth != other.fifth:
                continue
            pairs += 1
            order += (one.values[value] > other.values[value]) + 0.5 * (one.values[value] == other.values[value])
    return order / pairs


def test_metrics_from_histograms_are_those_of_their_definitions():
    drawn = mentions_drawn(60)
    counts = {picture: mention_counts(listed) for picture, listed in drawn.items()}
    names = list(dict.fromkeys(name for entry in counts.values() for name in entry))
    metrics = grounding_metrics(["score", "position"])
    table = ImageCounts(names, counts.items())
    values = table.values(metrics)
    every = [mention for listed in drawn.values() for mention in listed]
    for value in ("score", "position"):
        for same, name in ((False, "auroc"), (True, "auroc_in_fifths")):
            exact = pairs_in_order(every, value, same_fifth=same)
            assert values[f"grounding.{name}.{value}"] == pytest.approx(exact, abs=0.01), (name, value)
    assert values["grounding.auroc_in_fifths.position"] == pytest.approx(0.5, abs=0.08), "place says nothing in a fifth"
    bins = [[mention for mention in every if int(10 * mention.score) == place] for place in range(10)]
    error = sum(abs(sum(m.score - m.good for m in held)) for held in bins) / len(every)
    assert values["grounding.ece"] == pytest.approx(error)
    found = intervals(table, metrics, 200, 1)
    assert all(item.low <= item.value <= item.high for item in found.values())


def test_what_repair_changes():
    score = {
        "objects": ["cat", "dog"],
        "mentions": [{"noun": "dog"}, {"noun": "car"}, {"noun": "car"}, {"noun": "cat"}],
        "repaired": {"text": "A dog.", "nouns": ["dog"], "removed": ["item"], "faults": []},
    }
    table = ImageCounts(list(repair_counts(score, 8)), [(1, repair_counts(score, 8))])
    values = table.values(repair_metrics())
    assert values["grounding.repair.before.chair_i"] == 0.5 and values["grounding.repair.after.chair_i"] == 0
    assert values["grounding.repair.before.recall"] == 1 and values["grounding.repair.change.recall"] == -0.5
    assert values["grounding.repair.change.words"] == -6 and values["grounding.repair.faulty"] == 0


def test_what_repair_loses():
    """A dog with a low score goes by itself, a cat with a high one along with it; the second dog stays."""
    low, high = ({"noun": noun, "score": score} for noun, score in (("dog", 0.01), ("cat", 0.9)))
    car = {"noun": "car", "score": 0.01}
    repaired = {"nouns": [], "removed": ["sentence"], "faults": []}
    scores = [
        {"objects": ["cat", "dog"], "mentions": [low, high, car], "repaired": {**repaired}},
        {"objects": ["dog"], "mentions": [low, low], "repaired": {**repaired, "nouns": ["dog"]}},
        {"objects": ["dog"], "mentions": [low, low], "repaired": {**repaired}},
        {"objects": ["dog"], "mentions": [low], "repaired": None},
    ]
    found = repair_losses([{"score": score} for score in scores])
    assert found == {"by_own_score": 2, "with_others": 1, "words": {"dog": 2, "cat": 1}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run about eight scenes."""
    out = tmp_path_factory.mktemp("grounding") / "run"
    settings = RunSettings(
        data="scenes:broken:5",
        count=8,
        device="cpu",
        tasks=["grounding"],
        methods=["none", "pai:gain=0.4"],
        resamples=100,
    )
    evaluate(settings, out)
    return out


@pytest.mark.filterwarnings("ignore:no profile says")
def test_a_run_has_scores_a_table_a_plot_and_weights(finished, tmp_path):
    results = read_results(finished)
    records = read_records(finished / "none" / "samples.jsonl")[0]
    assert len(records) == 8
    for record in records.values():
        text = record["text"]
        for mention in record["score"]["mentions"]:
            assert set(mention["parts"]) == {"lens", "self_check"} and 0 <= mention["score"] <= 1
            assert (
                mention["end"] <= len(text) and mention["token_span"][0] < mention["token_span"][1] <= record["tokens"]
            )
        assert record["score"]["repaired"]["faults"] == []
    plain = results.methods[0]
    every = [mention for record in records.values() for mention in judged(record["score"])]
    summary = plain.grounding
    assert summary["mentions"] == len(every) == sum(summary["mentions_by_fifth"])
    assert summary["hallucinated_mentions"] == sum(not mention.good for mention in every)
    assert summary["faults"] == {} and set(summary["lost_objects"]) == {"by_own_score", "with_others", "words"}
    assert set(summary["fitted_weights"]["lens+self_check"]) == {"bias", "lens", "self_check"}
    names = set(plain.estimates)
    assert {"grounding.auroc.score", "grounding.auroc.lens", "grounding.auroc_in_fifths.position"} <= names
    assert plain.estimates["grounding.auroc.score"].value > plain.estimates["grounding.auroc.position"].value
    assert "grounding.auroc.score" in results.methods[1].difference_to_baseline
    compared = compare_runs([finished])
    assert "AUROC ↑" in render_table(compared.results, "markdown")
    assert [path.name for path in save_plots(compared, tmp_path)] == ["risk-coverage.png"]


def test_weights_go_into_a_profile(finished, tmp_path, capsys):
    path = tmp_path / "mine.json"
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "builtin", "--grounding", str(finished), "--out", str(path)])
    assert stopped.value.code == 0, capsys.readouterr().err
    profile = read_profile(path)
    assert list(profile.facts) == ["grounding_score", "grounding_repair_below"]
    assert all("8 pictures" in fact.note for fact in profile.facts.values())
    fitted = read_results(finished).methods[0].grounding["fitted_weights"]["lens+self_check"]
    assert weights_of(profile, ("self_check", "lens")) == pytest.approx(fitted, abs=1e-4)
    assert weights_of(profile, ("lens",)) is None
    records = read_records(finished / "none" / "samples.jsonl")[0].values()
    captions = [(record["text"], record["score"]) for record in records]
    below = repair_threshold(captions, profile.value("grounding_score")["lens+self_check"], coco_mentions)
    assert repair_below_of(profile, ("self_check", "lens")) == below <= 0.5
    assert repair_below_of(profile, ("lens",)) == repair_below_of(None, ("lens",)) == REPAIR_BELOW
    again = weights_facts(
        [finished], profile.facts | {"grounding_repair_below": Fact(value={"lens": 0.2}, source="code")}
    )
    assert again["grounding_repair_below"].value == {"lens": 0.2, "lens+self_check": below}
    profile.facts["grounding_repair_below"].value["lens"] = 3
    with pytest.raises(ValueError, match="grounding_repair_below of profile 'builtin' has 3; it must hold scores"):
        repair_below_of(profile, ("lens",))
    profile.facts["grounding_repair_below"] = Fact(value=0.3, source="calibrated")
    with pytest.raises(ValueError, match=r"has '0\.3'; it must hold scores"):
        repair_below_of(profile, ("lens",))


def test_weights_bring_the_layers_that_their_lens_has_read(finished, tmp_path):
    given = {"data": "scenes:common", "count": 4, "tasks": ["grounding"], "resamples": 100, "device": "cpu"}
    sure = {"max_new_tokens": 40, "lens_layers": ["0", 3]}
    evaluate(RunSettings(**given, methods=["none"], grounding=sure), tmp_path / "run")
    assert read_results(tmp_path / "run").tasks["grounding"]["lens_layers"] == [0, 3]
    assert "lens_layers" not in read_results(finished).tasks["grounding"]
    facts = weights_facts([tmp_path / "run"], {})
    assert facts["grounding_lens_layers"].value == [0, 3] and "4 pictures" in facts["grounding_lens_layers"].note
    with pytest.raises(ValueError, match="other lens layers"):
        weights_facts([tmp_path / "run", finished], {})
    with pytest.raises(ValueError, match=r"lens layers are \[0, 9\]; allowed are 0"):
        evaluate(RunSettings(**given, methods=["none"], grounding={"lens_layers": [0, 9]}), tmp_path / "wrong")


def caption_with(*scores):
    """A caption of one thing a sentence, each with a score, as a record has it; the first two things are there."""
    nouns = ("dog", "cat", "bus", "car")[: len(scores)]
    text = " ".join(f"There is a {noun}." for noun in nouns)
    places = [text.index(noun) for noun in nouns]
    mentions = [
        {
            "text": noun,
            "noun": noun,
            "start": start,
            "end": start + 3,
            "token_span": [place, place + 1],
            "score": 0.5,
            "parts": {"lens": math.log(score / (1 - score))},
        }
        for place, (noun, start, score) in enumerate(zip(nouns, places, scores))
    ]
    return text, {"objects": ["dog", "cat"], "mentions": mentions}


def test_repair_goes_as_far_as_the_recall_allows(monkeypatch):
    """Of four objects one may be lost here: the cat of 0.205, but not the dog of 0.305 as well."""
    weights = {"bias": 0.0, "lens": 1.0}
    captions = [caption_with(0.9, 0.205, 0.1), caption_with(0.305, 0.8, 0.02)]
    monkeypatch.setattr("vlm_guard.eval.tasks.grounding.repair_threshold.RECALL_SLACK", 0.25)
    assert repair_threshold(captions, weights, coco_mentions) == 0.30
    monkeypatch.setattr("vlm_guard.eval.tasks.grounding.repair_threshold.RECALL_SLACK", 0.2)
    assert repair_threshold(captions, weights, coco_mentions) == 0.20
    assert repair_threshold([caption_with(0.9, 0.8, 0.7)], weights, coco_mentions) == 0.5, "what is likely stays"


def test_refusals(finished, tmp_path, capsys):
    with pytest.raises(ValueError, match="parts are magic; allowed: lens, self_check"):
        RunSettings(tasks=["grounding"], grounding={"parts": ["magic"]})
    with pytest.raises(ValueError, match="allowed: drop, rewrite, none"):
        RunSettings(tasks=["grounding"], grounding={"repair": "burn"})
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "builtin", "--grounding", str(tmp_path)])
    assert stopped.value.code == 2 and str(tmp_path) in capsys.readouterr().err
    broken = finished.parent / "broken"
    broken.mkdir()
    (broken / "none").mkdir()
    for name in ("results.json", "none/samples.jsonl"):
        (broken / name).write_bytes((finished / name).read_bytes())
    results = json.loads((broken / "results.json").read_text(encoding="utf-8"))
    results["methods"] = results["methods"][:1]
    (broken / "results.json").write_text(json.dumps(results), encoding="utf-8")
    lines = (broken / "none" / "samples.jsonl").read_text(encoding="utf-8").replace('"score":', '"scare":')
    (broken / "none" / "samples.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=r"samples\.jsonl"):
        compare_runs([broken])


def said(*verdicts: str, objects: list[str] | None = None) -> dict:
    """The score of an answer of 50 characters with these verdicts in its first half, repaired by one mention."""
    values = {"grounded": 0.8, "doubtful": 0.2, "unchecked": None}
    mentions = [
        {"noun": "dog", "start": 5 * place, "verdict": verdict, "score": values[verdict], "parts": {}}
        for place, verdict in enumerate(verdicts)
    ]
    repaired = {"text": "two words", "nouns": [], "removed": ["item"], "faults": []}
    return {"objects": objects, "mentions": mentions, "length": 50, "repaired": repaired}


def test_numbers_without_labels_by_hand():
    scores = [said("grounded", "doubtful", "unchecked"), said("doubtful"), said("grounded"), said()]
    counts = {place: doubt_counts(score, 4) for place, score in enumerate(scores)}
    values = ImageCounts(list(counts[0]), counts.items()).values(doubt_metrics(repaired=True))
    assert {name.removeprefix("grounding."): value for name, value in values.items()} == pytest.approx(
        {
            "mentions": 5 / 4,
            "mean_score": (0.8 + 0.2 + 0.2 + 0.8) / 4,
            "doubtful": 2 / 4,
            "answers_doubtful": 2 / 3,  # of those in which something was checked
            "answers_repaired": 1,
            "words_kept": 2 / 4,
        }
    )
    summary = doubt_summary([{"score": score} for score in scores])
    assert summary["answers"] == {"all grounded": 1, "some doubtful": 1, "all doubtful": 1, "nothing checked": 1}
    assert summary["verdicts"] == {"grounded": 2, "doubtful": 2, "unchecked": 1}
    assert summary["scores_in_tenths"] == [0, 0, 2, 0, 0, 0, 0, 0, 2, 0]
    assert summary["doubtful_by_fifth"] == [2, 0, 0, 0, 0] and summary["mentions_by_fifth"] == [4, 0, 0, 0, 0]
    assert summary["score_quantiles"]["0.5"] == pytest.approx(0.5)


@pytest.mark.filterwarnings("ignore:no profile says")
def test_pictures_without_labels_have_scores_and_no_truth(tmp_path):
    pictures = make_coco_folder(tmp_path / "coco", images=2) / "images"
    out = tmp_path / "run"
    settings = {"data": f"folder:{pictures}", "device": "cpu", "tasks": ["grounding"], "resamples": 100}
    evaluate(RunSettings(**settings, methods=["none"], grounding={"words": "nouns", "max_new_tokens": 24}), out)
    plain = read_results(out).methods[0]
    assert plain.estimates["grounding.mentions"].value > 0 and "grounding.auroc.score" not in plain.estimates
    assert plain.grounding["labels"] is False and sum(plain.grounding["answers"].values()) == 2
    compared = compare_runs([out])
    table = render_table(compared.results, "markdown")
    assert "doubtful" in table and "scores of nouns from lens and self_check; no labels" in table
    page = build_report(compared)
    assert '"unlabelled":true' in page and '"objects":[]' in page
    with pytest.raises(ValueError, match="no risk to plot"):
        save_plots(compared, tmp_path)
    with pytest.raises(ValueError, match="without labels, so nobody knows"):
        weights_facts([out], {})
    with pytest.raises(ValueError, match="know MSCOCO's objects only"):
        GroundingTask(open_dataset("scenes:common", 1), GroundingSettings(words="nouns"))
