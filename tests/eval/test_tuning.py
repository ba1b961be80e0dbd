"""Choosing a method without labels: what is asked, how settings are ranked, when one may be chosen, what is saved."""

import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vlm_guard import cli, wrap
from vlm_guard.eval.report.fitting import folded_label
from vlm_guard.eval.run.models import load_model
from vlm_guard.eval.run.statistics import LEAST_PICTURES
from vlm_guard.eval.tuning import run as tuning_run
from vlm_guard.eval.tuning.candidates import candidates
from vlm_guard.eval.tuning.choice import Caption, choose, estimate, spearman
from vlm_guard.eval.tuning.pictures import pictures_of_data, pictures_of_folder
from vlm_guard.eval.tuning.report import print_tuning
from vlm_guard.eval.tuning.votes import LENS, SELF_CHECK, Votes, collect_votes, foreign_nouns
from vlm_guard.families.profiles import read_profile
from vlm_guard.method.model_choice import FACT

EVALUATIONS = Path(__file__).resolve().parents[2] / "eval" / "results"
PRESENT, ABSENT = [f"thing{index}" for index in range(4)], [f"ghost{index}" for index in range(4)]


@pytest.fixture(scope="module")
def builtin():
    return load_model("builtin", device="cpu")


def votes_on(pictures, kinds=(SELF_CHECK, LENS)):
    """Votes that are right about every noun."""
    values = {(picture, noun): 1.0 for picture in pictures for noun in PRESENT}
    values |= {(picture, noun): -1.0 for picture in pictures for noun in ABSENT}
    return Votes(kinds=kinds, values=dict.fromkeys(kinds, values), thresholds=dict.fromkeys(kinds, 0.0))


def captions_with(pictures, present, absent, words=12, seed=0):
    """Captions that name so many things that are there and so many that are not, on average."""
    draw = random.Random(seed)
    found = {}
    for picture in pictures:
        right = [noun for noun in PRESENT if draw.random() < present / 4]
        wrong = [noun for noun in ABSENT if draw.random() < absent / 4]
        found[picture] = Caption(text=" ".join(["word"] * words), nouns=(*right, *wrong))
    return found


def estimated(**settings):
    pictures = range(200)
    captions = {name: captions_with(pictures, *numbers) for name, numbers in settings.items()}
    return {item.label: item for item in estimate(captions, votes_on(pictures))}


def test_the_largest_sure_fall_that_keeps_what_is_there_is_chosen():
    found = estimated(none=(3, 2), good=(3, 1), better=(3, 0.5), costly=(2, 0.1), short=(3, 0.5, 4))
    assert found["good"].objections == found["better"].objections == ()
    assert "fewer present things are named" in found["costly"].objections
    assert found["short"].objections == ("captions have 0.33 times the words",)
    label, reason = choose(list(found.values()), 200)
    assert label == "better" and "2 that may be chosen" in reason


def test_nothing_is_chosen_where_nothing_falls_or_the_pictures_are_few():
    found = estimated(none=(3, 1), worse=(3, 2), costly=(1, 0.1))
    assert "absent mentions do not fall" in found["worse"].objections[0]
    assert choose(list(found.values()), 200)[0] == "none"
    good = estimated(none=(3, 2), good=(3, 0.5))
    assert choose(list(good.values()), LEAST_PICTURES)[0] == "good"
    label, reason = choose(list(good.values()), LEAST_PICTURES - 1)
    assert label == "none" and f"at least {LEAST_PICTURES}" in reason


def test_a_fall_of_less_than_half_a_point_is_not_worth_a_method():
    found = estimated(none=(3, 2), hardly=(3, 1.97), enough=(3, 1.93))
    falls = {label: found[label].changes["absent.self_check"].value for label in ("hardly", "enough")}
    assert -0.005 < falls["hardly"] < 0 and falls["enough"] < -0.005
    assert found["hardly"].objections == ("absent mentions fall by less than 0.5 points",)
    assert found["enough"].objections == ()
    assert choose([found["none"], found["hardly"]], 200)[0] == "none"


def test_both_votes_must_agree():
    pictures = range(100)
    captions = {"none": captions_with(pictures, 3, 2), "good": captions_with(pictures, 3, 0.5)}
    right = votes_on(pictures)
    wrong = {key: -value for key, value in right.values[SELF_CHECK].items()}
    votes = Votes(
        kinds=right.kinds, values={SELF_CHECK: right.values[SELF_CHECK], LENS: wrong}, thresholds=right.thresholds
    )
    (_, good) = estimate(captions, votes)
    assert good.objections == ("absent mentions do not fall by lens",)
    assert estimate(captions, votes_on(pictures, (SELF_CHECK,)))[1].objections == ()


def test_intervals_are_paired_over_pictures():
    found = estimated(none=(3, 2), good=(3, 1))
    share = found["good"].changes["absent.self_check"]
    assert share.low < share.value < share.high < 0
    assert share.value == pytest.approx(
        found["good"].values["absent.self_check"].value - found["none"].values["absent.self_check"].value
    )


def test_rank_correlation_has_mean_ranks_for_ties():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(np.corrcoef([0.5, 0.5, 2, 3], [0, 1, 2.5, 2.5])[0, 1])
    assert math.isnan(spearman([1, 1], [1, 2]))


def test_foreign_nouns_are_those_that_no_caption_of_the_picture_names():
    own = {1: ["dog", "cat"], 2: ["bus"], 3: ["cup"]}
    found = foreign_nouns(own, {1: {"dog", "cat", "bus"}, 2: {"bus"}, 3: {"cup", "dog"}})
    assert set(found[1]) == {"cup"} and set(found[2]) == {"dog", "cat", "cup"} and set(found[3]) == {"cat", "bus"}


def test_the_votes_tell_what_is_in_a_picture(builtin):
    """The built-in model about nouns that annotators have, and about nouns that they have not."""
    pictures = pictures_of_data("scenes:common:59", 6)
    everything = sorted({noun for objects in pictures.objects.values() for noun in objects})
    own = {number: pictures.objects[number] for number in pictures.files}
    named = {number: set(everything) for number in pictures.files}
    for number in named:
        named[number] -= set([noun for noun in everything if noun not in own[number]][:6])
    batches = tuning_run._batches(builtin, pictures, tuning_run.PROMPT, 3)
    with wrap(builtin.model, builtin.processor, "none") as guard:
        votes = collect_votes(guard, batches, own, named)
    for kind in (SELF_CHECK, LENS):
        truth = {(number, noun): noun in own[number] for number, noun in votes.values[kind]}
        right = [votes.present(kind, *key) == there for key, there in truth.items()]
        assert sum(right) / len(right) > 0.75, kind


def test_settings_to_try(builtin):
    model, processor = builtin.model, builtin.processor
    assert candidates(model, processor, ["pai:gain=0.4", "vhr"]) == [
        "pai:gain=0.4",
        "vhr:strength=1.5",
        "vhr",
        "vhr:strength=3",
    ]
    everything = candidates(model, processor, None)
    assert "m3id:forgetting=0.01,plausibility=0.7" in everything and "pai:gain=0.4" in everything
    assert not any(label.startswith(("carve", "uncertainty", "none")) for label in everything)
    with pytest.raises(ValueError, match="no strength to try"):
        candidates(model, processor, ["none"])


def test_pictures_of_a_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for index in range(7):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / ("inner" if index % 2 else ".") / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = pictures_of_folder(tmp_path, 100)
    assert len(found.files) == 7 and found.objects is None
    some = pictures_of_folder(tmp_path, 3)
    assert len(some.files) == 3 and some.files == pictures_of_folder(tmp_path, 3).files
    assert some.fingerprint != found.fingerprint
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        pictures_of_folder(tmp_path / "nowhere", 3)
    with pytest.raises(ValueError, match="no picture"):
        (tmp_path / "empty").mkdir()
        pictures_of_folder(tmp_path / "empty", 3)


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", *map(str, arguments)])
    return ended.value.code


def test_from_pictures_to_the_profile_that_wrap_uses(tmp_path, monkeypatch, capsys, builtin):
    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path / "profiles"))
    data = pictures_of_data("scenes:common:59", 3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, path in data.files.items():
        (folder / f"{number}.png").write_bytes(path.read_bytes())
    arguments = ["builtin", "--images", folder, "--method", "pai:gain=0.4", "--method", "pai:gain=0.2,guidance=1"]
    assert command(*arguments, "--max-new-tokens", 24, "--report", tmp_path / "report.json") == 0
    said = capsys.readouterr().out
    assert "3 pictures are too few" in said and "Nothing was saved" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert [item["setting"] for item in report["settings"]] == ["none", "pai:gain=0.4", "pai:gain=0.2,guidance=1"]
    assert report["labels"] is None and report["chosen"] == "none" and not (tmp_path / "profiles").exists()

    found = tuning_run.Tuning(report=report, chosen="pai:gain=0.4", reason="a test")
    (tmp_path / "profiles").mkdir()
    tuning_run.profile_with_choice(builtin, "builtin", found, None).save(tmp_path / "profiles" / "builtin.json")
    assert read_profile(tmp_path / "profiles" / "builtin.json").value(FACT) == "pai:gain=0.4"
    with wrap(builtin.model, builtin.processor) as guard:
        assert guard.methods[0].method.gain == 0.4


def test_with_annotations_the_true_rank_is_told(tmp_path, capsys):
    arguments = ["builtin", "--data", "scenes:common:59", "--count", 3, "--method", "pai:gain=0.4", "--no-save"]
    assert command(*arguments, "--max-new-tokens", 24, "--json") == 0
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert labels["settings"].keys() == {"none", "pai:gain=0.4"} and labels["true_rank"] in (1, 2)
    assert labels["spearman_chair_i"] in (-1, 1, None)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_settings_and_objections_stand_in_the_terminal_in_full(width):
    runs = json.loads((EVALUATIONS / "tune_seeds.json").read_text(encoding="utf-8"))["runs"]
    report = {**runs[1], "model": "builtin", "refused": {}, "profile": None}
    console = Console(width=width, record=True, file=io.StringIO())
    print_tuning(console, report)
    tables = console.export_text().split("\nchosen: ")[0]
    assert max(map(len, tables.splitlines())) <= width and "…" not in tables
    for item in report["settings"]:
        assert all(line.strip() in tables for line in folded_label(item["setting"], width).split("\n"))
        assert {word for objection in item["objections"] for word in objection.split()} <= {*tables.split()}


@pytest.mark.parametrize("arguments", [[], ["--images", "x", "--data", "scenes:common"]])
def test_pictures_are_given_one_way(arguments, capsys):
    assert command("builtin", *arguments) == 2
    assert "either --images FOLDER, or --data" in capsys.readouterr().err
