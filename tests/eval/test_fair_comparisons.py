"""Numbers that answer "it only says yes less often" and "it only writes less": made-up records with known answers."""

import json
from dataclasses import replace
from importlib.metadata import version

import pytest
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.run.summary import MethodRecords
from vlm_guard.eval.tasks.chair.places import complete_end, count_places, cut_record, end_of_words, fifth_of
from vlm_guard.eval.tasks.chair.report import score_captions, side_by_side_lines
from vlm_guard.eval.tasks.chair.wordnet import missing_nltk_data
from vlm_guard.eval.tasks.shared.fair import yes_matched
from vlm_guard.eval.tasks.shared.registry import task_class


def asked(number: int, label: str, answer: str, margin: float | None = None, strategies=("random",)) -> dict:
    record = {
        "task": "pope",
        "sample": f"pope/{number}/x",
        "image_id": number,
        "text": answer.capitalize(),
        "finished": True,
        "score": {"answer": answer, "label": label, "object": "dog", "strategies": list(strategies)},
    }
    return record if margin is None else record | {"yes_margin": margin}


def call(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


LABELS = ["yes", "yes", "yes", "no", "no", "no"]
MARGINS = [3.0, 2.0, -1.0, 1.0, -2.0, -3.0]


def baseline() -> list[dict]:
    pairs = enumerate(zip(LABELS, MARGINS))
    return [asked(number, label, "yes" if margin > 0 else "no", margin) for number, (label, margin) in pairs]


def answered(answers: list[str]) -> list[dict]:
    return [asked(number, label, answer) for number, (label, answer) in enumerate(zip(LABELS, answers))]


@pytest.mark.parametrize("yes", range(7))
def test_the_control_says_yes_as_often_and_keeps_the_baselines_order(yes):
    other = answered(["yes"] * yes + ["no"] * (6 - yes))
    pair = yes_matched(baseline(), other, {})
    said = {record["image_id"] for record in pair.baseline if record["score"]["answer"] == "yes"}
    order = sorted(range(6), key=lambda place: -MARGINS[place])
    assert said == set(order[:yes]), "the largest margins of the baseline, whatever the method answered"
    assert pair.facts["yes_ratio"] == pair.facts["control_yes_ratio"] == yes / 6
    assert said == {place for place in range(6) if MARGINS[place] + pair.facts["offset"] > 0}


def test_the_baseline_itself_is_its_own_control():
    pair = yes_matched(baseline(), baseline(), {})
    control = {record["sample"]: record["score"]["answer"] for record in pair.baseline}
    assert control == {record["sample"]: record["score"]["answer"] for record in baseline()}


def test_equal_margins_are_cut_nowhere_and_unknown_ones_left_out():
    same = [asked(number, "yes", "yes", 1.0) for number in range(4)]
    pair = yes_matched(same, answered(["yes", "no", "no", "no"]), {})
    assert pair.facts["control_yes_ratio"] == 0.0, "one constant moves all four or none"
    assert yes_matched(answered(["yes"] * 6), answered(["no"] * 6), {}) is None
    half = [*baseline()[:3], *answered(["no"] * 6)[3:]]
    assert len(yes_matched(half, answered(["no"] * 6), {}).baseline) == 3


def test_a_method_that_only_says_no_more_often_gains_nothing_over_its_control():
    """It turns the baseline's least sure yes into no: accuracy rises from 4 to 5 of 6, and the control's does, too."""
    other = answered(["yes", "yes", "no", "no", "no", "no"])
    found, said = MethodRecords(other).fair_differences(MethodRecords(baseline()), 100)
    assert found["pope.over_control.accuracy"].value == found["pope.over_control.f1"].value == 0
    plain = MethodRecords(other).differences_to(MethodRecords(baseline()), 100)
    assert plain["pope.mean.accuracy"].value == pytest.approx(1 / 6)
    assert said["pope"]["offset"] == pytest.approx(-1.5) and "shifted by a constant" in said["pope"]["what"]
    better = answered(["yes", "no", "yes", "no", "no", "no"])  # as many, others: 5 of 6 as well
    assert MethodRecords(better).fair_differences(MethodRecords(baseline()), 100)[0][
        "pope.over_control.accuracy"
    ].value == pytest.approx(0)
    perfect = answered(["yes", "yes", "yes", "no", "no", "no"])
    found, _ = MethodRecords(perfect).fair_differences(MethodRecords(baseline()), 100)
    assert found["pope.over_control.accuracy"].value == pytest.approx(2 / 6), "the control's third yes is a wrong one"


def test_a_question_counts_as_often_as_strategies_ask_it():
    before = [
        asked(0, "yes", "yes", 2.0, ("random", "popular")),
        asked(1, "no", "yes", 1.0),
        asked(2, "no", "no", -1.0),
    ]
    after = [asked(0, "yes", "yes", None, ("random", "popular")), asked(1, "no", "no"), asked(2, "no", "no")]
    pair = task_class("pope").fair_pair(before, after)
    assert pair.facts["yes_ratio"] == pair.facts["control_yes_ratio"] == 2 / 4


CAPTION = "A dog runs. Near it a cat sleeps. There is a bear on the"
MENTIONS = [(2, 5, "dog", False), (22, 25, "cat", True), (45, 49, "bear", True)]


def caption(number: int, text: str, mentions, finished: bool = False) -> dict:
    named = [
        {"node": node, "text": text[start:end], "start": start, "end": end, "hallucinated": wrong}
        for start, end, node, wrong in mentions
    ]
    score = {"mentions": named, "objects": ["dog", "person"], "chair_s": int(any(item[3] for item in mentions))}
    score |= {"words": len(text.split()), "tokens": 0, "repeated_4_grams": 0.0}
    return {
        "task": "chair",
        "sample": f"chair/{number}",
        "image_id": number,
        "text": text,
        "finished": finished,
        "score": score,
    }


def test_the_chair_command_names_places_and_nltk(tmp_path, capsys):
    path, objects = tmp_path / "captions.jsonl", tmp_path / "objects.json"
    path.write_text(json.dumps({"image_id": 1, "caption": CAPTION}), encoding="utf-8")
    objects.write_text('{"1": ["dog", "person"]}', encoding="utf-8")
    code, out, _ = call(capsys, "chair", path, "--objects", objects, "--json")
    report = json.loads(out)
    assert code == 0 and report["nltk"] == version("nltk") and report["fifth_mentions"] == [1, 1, 0, 0, 1]
    assert report["fifth_chair_i"] == [0, 1, 0, 0, 1] and report["per_100_words"] == pytest.approx(100 * 2 / 14)
    assert (report["chair_i"], report["complete_chair_i"]) == (pytest.approx(2 / 3), 0.5)
    code, out, _ = call(capsys, "chair", path, "--objects", objects)
    assert "50.00 % CHAIR_i, without an unfinished last sentence" in out and f"nltk {version('nltk')}" in out
    code, _, err = call(capsys, "chair", path, "--objects", objects, "--mode", "both")
    assert code == 2 and "--mode both reads the ground truth in both modes" in err and len(err.splitlines()) == 1
    assert "--per-caption" not in err and "give --coco FOLDER" in err
    both = ("chair", path, "--coco", tmp_path, "--per-caption", tmp_path / "out.jsonl", "--mode", "both")
    code, _, err = call(capsys, *both)
    assert code == 2 and "--per-caption writes the records of one mode" in err and "--objects" not in err
    code, _, err = call(capsys, "chair", path, "--objects", objects, "--mode", "wordnt")
    assert code == 2 and "must be one of pattern, wordnet, both. Did you mean 'wordnet'?" in err
    report = score_captions(path, {1: ["dog"]})
    other = replace(report, summary=replace(report.summary, mode="wordnet", hallucinated_mentions=1))
    lines = list(side_by_side_lines(report, other))
    assert lines[1].split() == ["pattern", "wordnet", "difference"]
    assert next(line for line in lines if line.startswith("chair_i")).split() == ["chair_i", "66.67", "33.33", "-33.33"]


def test_object_sets_of_the_other_mode_are_pointed_at(tmp_path, capsys):
    path, objects = tmp_path / "captions.jsonl", tmp_path / "objects_wordnet.json"
    path.write_text(json.dumps({"image_id": 1, "caption": CAPTION}), encoding="utf-8")
    objects.write_text('{"1": ["dog", "person"]}', encoding="utf-8")
    code, _, err = call(capsys, "chair", path, "--objects", objects)
    assert code == 0 and "in mode pattern, and its name says wordnet" in err and len(err.splitlines()) == 1
    objects = objects.rename(tmp_path / "objects.json")
    code, _, err = call(capsys, "chair", path, "--objects", objects)
    assert code == 0 and err == ""
    _, _, err = call(capsys, "chair", path, "--objects", objects, "--mode", "wordnet")
    assert "in mode wordnet, and the file does not say which it was" in err


@pytest.mark.skipif(bool(missing_nltk_data()), reason="NLTK's data is not installed")
def test_both_text_modes_side_by_side(tmp_path, capsys):
    coco = make_coco_folder(tmp_path / "coco", images=3)
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image_id": 1, "caption": "Two men seated on a bus."}', encoding="utf-8")
    code, out, _ = call(capsys, "chair", path, "--coco", coco, "--mode", "both", "--json")
    assert code == 0 and set(json.loads(out)) == {"pattern", "wordnet"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (CAPTION, "A dog runs. Near it a cat sleeps."),
        ('He said "stop." and then', 'He said "stop.'),
        ("It is 3.5 metres", "It is 3.5 metres"),
        ("No mark at all", "No mark at all"),
        ("All of it!", "All of it!"),
        ("", ""),
    ],
)
def test_the_unfinished_last_sentence_is_dropped(text, kept):
    assert text[: complete_end(text)] == kept


def test_places_by_hand():
    counts = count_places(CAPTION, MENTIONS, complete_end(CAPTION))
    assert [fifth_of(place, 10) for place in range(11)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert counts.mentions == tuple(
        sum(fifth_of(start, len(CAPTION)) == fifth for start, *_ in MENTIONS) for fifth in range(5)
    )
    assert sum(counts.hallucinated) == 2
    assert (counts.complete_mentions, counts.complete_hallucinated, counts.complete_recalled) == (2, 1, 1)
    assert [CAPTION[: end_of_words(CAPTION, words)] for words in (0, 1, 3)] == ["", "A", "A dog runs."]
    assert end_of_words(CAPTION, 99) == len(CAPTION)


def test_captions_metrics_by_place():
    records = [caption(1, CAPTION, MENTIONS), caption(2, CAPTION, MENTIONS, finished=True)]
    found = {name: item.value for name, item in MethodRecords(records).estimates(100).items()}
    assert found["chair.per_100_words"] == pytest.approx(100 * 4 / (2 * len(CAPTION.split())))
    assert found["chair_i"] == pytest.approx(4 / 6)
    assert found["chair.complete.chair_i"] == pytest.approx(3 / 5), "a caption that ended by itself is kept whole"
    assert found["chair.complete.chair_s"] == 1 and found["chair.complete.recall"] == 0.5
    fifths = [found[f"chair.fifth_{fifth}.chair_i"] for fifth in range(1, 6)]
    assert fifths[0] == 0 and fifths[4] == 1


def test_a_method_that_only_writes_less_gains_nothing_at_equal_length():
    short = CAPTION[: CAPTION.index(" Near")]
    before, after = [caption(1, CAPTION, MENTIONS)], [caption(1, short, MENTIONS[:1])]
    assert MethodRecords(after).differences_to(MethodRecords(before), 100)["chair_i"].value == pytest.approx(-2 / 3)
    found, said = MethodRecords(after).fair_differences(MethodRecords(before), 100)
    assert found["chair.equal_length.chair_i"].value == 0 == found["chair.equal_length.recall"].value
    assert said["chair"]["mean_words"] == 3
    cut = cut_record(before[0], 7)
    assert [mention["node"] for mention in cut["score"]["mentions"]] == ["dog", "cat"] and cut["score"]["words"] == 7
    assert MethodRecords([caption(9, short, [])]).fair_differences(MethodRecords(before), 100) == ({}, {})
