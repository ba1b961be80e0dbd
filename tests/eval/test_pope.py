"""POPE's scores, counted by hand, and the pope command."""

import json
from pathlib import Path

import pytest

from vlm_guard.cli import main
from vlm_guard.eval.tasks.pope.scoring import (
    PopeQuestion,
    build_questions,
    match_answers,
    read_answers,
    score_answers,
    score_predictions,
    write_questions,
)


def question(number, label, strategy="random"):
    return PopeQuestion(
        question_id=number,
        image_id=1,
        image="1.jpg",
        text=f"Is there a thing {number} in the image?",
        label=label,
        object=f"thing {number}",
        strategy=strategy,
    )


QUESTIONS = [question(number, label) for number, label in enumerate(["yes"] * 5 + ["no"] * 5, start=1)]
#         yes: 3 right, 1 wrong, 1 unread;  no: 2 right, 2 wrong, 1 unread
TEXTS = ["Yes", "yes.", "Yes, it is", "No", "Maybe", "No", "no", "Yes", "Yes", "I see"]


def test_counts_and_rates_by_hand():
    score = score_answers(QUESTIONS, TEXTS).strategies["random"]
    assert (score.true_yes, score.false_no, score.unparsed_yes) == (3, 1, 1)
    assert (score.true_no, score.false_yes, score.unparsed_no) == (2, 2, 1)
    assert (score.questions, score.unparsed) == (10, 2)
    assert score.accuracy == pytest.approx(5 / 10)
    assert score.precision == pytest.approx(3 / 5)
    assert score.recall == pytest.approx(3 / 5)
    assert score.f1 == pytest.approx(3 / 5)
    assert score.yes_ratio == pytest.approx(5 / 10)


def test_the_published_confusion_counts_give_the_published_rates():
    """Greedy LLaVA-1.5-7B on random MSCOCO questions: 88.27 accuracy, 87.13 F1 (pope-audit 0.1.1's README)."""
    labels = ["yes"] * 1500 + ["no"] * 1500
    predictions = ["yes"] * 1191 + ["no"] * 309 + ["no"] * 1457 + ["yes"] * 43
    score = score_predictions(labels, predictions)
    assert round(100 * score.accuracy, 2) == 88.27
    assert round(100 * score.f1, 2) == 87.13


def test_unparsed_answers_are_wrong():
    score = score_answers(QUESTIONS, ["hm"] * 10).strategies["random"]
    assert (score.accuracy, score.precision, score.recall, score.f1, score.yes_ratio) == (0, 0, 0, 0, 0)
    assert score.unparsed == 10


def test_the_mean_weighs_strategies_equally():
    questions = [question(1, "yes"), question(2, "no"), question(1, "yes", "popular")]
    summary = score_answers(questions, ["Yes", "Yes", "Yes"])
    assert summary.strategies["random"].accuracy == 0.5
    assert summary.strategies["popular"].accuracy == 1
    assert summary.mean["accuracy"] == 0.75
    record = json.loads(json.dumps(summary.to_dict()))
    assert (record["parser"], record["questions"], record["unparsed"]) == ("strict", 3, 0)


def test_parsers_change_the_score():
    answers = ["I don't know"] * 10
    by_parser = {name: score_answers(QUESTIONS, answers, name) for name in ("strict", "pope", "opera", "vcd")}
    assert {name: round(summary.mean["accuracy"], 2) for name, summary in by_parser.items()} == {
        "strict": 0,
        "pope": 0.5,
        "opera": 0.5,
        "vcd": 0.5,
    }
    assert by_parser["pope"].mean["yes_ratio"] == 1
    assert by_parser["opera"].mean["yes_ratio"] == 0


def test_nothing_to_score():
    summary = score_answers([], [])
    assert summary.strategies == {}
    assert summary.mean["accuracy"] == 0


def test_counts_must_fit():
    with pytest.raises(ValueError, match="10 questions but 1 answers"):
        score_answers(QUESTIONS, ["Yes"])
    with pytest.raises(ValueError, match="they must be yes or no, and yes, no or unparsed"):
        score_predictions(["yes"], ["maybe"])
    with pytest.raises(ValueError, match="must be yes or no"):
        question(1, "maybe")


def test_answers_are_matched_by_id_and_strategy():
    questions = [question(1, "yes"), question(2, "no"), question(1, "yes", "popular")]
    answers = [(1, "popular", "c"), (2, "random", "b"), (1, "random", "a")]
    assert match_answers(questions, answers) == ["a", "b", "c"]
    assert match_answers(questions[:2], [(2, None, "b"), (1, None, "a")]) == ["a", "b"]
    assert match_answers(questions, [(None, None, text) for text in "abc"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(1, None, "a")], "1 of 2 questions have no answer and 0 answers no question, for example number 2"),
        ([(1, None, "a"), (2, None, "b"), (9, None, "c")], "1 answers no question, for example number 9"),
        ([(1, None, "a"), (1, None, "b")], "question 1 .* is answered twice"),
        ([(None, None, "a")], "2 questions but 1 answers, which have no ids"),
    ],
)
def test_answers_that_do_not_fit_are_explained(answers, message):
    with pytest.raises(ValueError, match=message):
        match_answers([question(1, "yes"), question(2, "no")], answers)
    with pytest.raises(ValueError, match="names no strategy"):
        match_answers([question(1, "yes"), question(1, "no", "popular")], [(1, None, "a")])


def test_answer_keys(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question_id": "3", "text": "Yes"}\n{"answer": "No", "text": "Is it?", "strategy": "popular"}\n')
    assert read_answers(path) == [(3, None, "Yes"), (None, "popular", "No")]
    path.write_text('{"question_id": 3}\n')
    with pytest.raises(ValueError, match="needs the answer as text under one of answer, ans, text"):
        read_answers(path)


@pytest.fixture
def files(tmp_path):
    objects = {number: ["dog", "person", "car"] for number in range(4)} | {9: ["cat", "cup", "bowl", "tie", "bed"]}
    questions = build_questions(objects)
    paths = {}
    for strategy in ("random", "popular", "adversarial"):
        chosen = [one for one in questions if one.strategy == strategy]
        write_questions(chosen, tmp_path / f"q_{strategy}.json")
        wrong = {"yes": "No", "no": "Yes"}
        for name, every in (("neutral", 5), ("leading", 2)):
            lines = [
                {"question_id": one.question_id, "answer": wrong[one.label] if i % every == 0 else one.label}
                for i, one in enumerate(chosen)
            ]
            path = tmp_path / f"{name}_{strategy}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            paths[name, strategy] = str(path)
        paths["questions", strategy] = str(tmp_path / f"q_{strategy}.json")
    return paths


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def test_the_command_scores_several_strategies(files, capsys):
    strategies = ("random", "popular")
    arguments = [files["neutral", name] for name in strategies]
    arguments += [part for name in strategies for part in ("--questions", files["questions", name])]
    assert run("pope", *arguments, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["strategies"]) == list(strategies)
    assert record["mean"]["accuracy"] == pytest.approx(24 / 30)
    estimate = record["estimates"]["pope.mean.accuracy"]
    assert estimate["value"] == pytest.approx(24 / 30) and estimate["low"] < estimate["high"]
    assert estimate["images"] == 5, "intervals are over pictures"
    assert run("pope", *arguments) == 0
    assert "answers read by 'strict'" in capsys.readouterr().out


def test_the_command_compares_with_leading_queries(files, capsys):
    arguments = [files["neutral", "random"], "--questions", files["questions", "random"]]
    arguments += ["--leading", files["leading", "random"]]
    assert run("pope", *arguments, "--json") == 0
    record = json.loads(capsys.readouterr().out)["leading"]
    assert record["neutral"]["counts"]["true_yes"] + record["neutral"]["counts"]["true_no"] == 24
    # Wrong before: multiples of 5; wrong after: multiples of 2; both: multiples of 10.
    assert (record["right_to_wrong"], record["wrong_to_right"], record["changed"]) == (12, 3, 15)
    assert run("pope", *arguments) == 0
    assert "12 from right to wrong" in capsys.readouterr().out


def test_wrong_use_of_the_command_is_explained(files, capsys):
    assert run("pope", files["neutral", "random"], "--questions", files["questions", "random"], "--parser", "x") == 2
    assert "must be one of strict" in capsys.readouterr().err
    two = [files["neutral", "random"], files["neutral", "popular"]]
    assert run("pope", *two, "--questions", files["questions", "random"]) == 2
    assert "1 question files but 2 answer files" in capsys.readouterr().err


def test_answers_to_another_question_file_of_the_same_numbers_are_refused(files, tmp_path, capsys):
    def answers_of(strategy, **kept):
        path = tmp_path / f"said_{strategy}_{len(kept)}.jsonl"
        asked = [json.loads(line) for line in Path(files["questions", strategy]).read_text().splitlines()]
        lines = [
            {"question_id": one["question_id"], "text": "No", **{key: make(one) for key, make in kept.items()}}
            for one in asked
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    def prompt(one):
        return f"USER: {one['text'].upper()}  Please answer with one word."

    said = answers_of("random", prompt=prompt, image=lambda one: f"val2014/{one['image'][:-4]}.png")
    random, popular = files["questions", "random"], files["questions", "popular"]
    assert run("pope", said, "--questions", random) == 0
    assert "matched by number" not in capsys.readouterr().err, "what was asked is in the records"
    assert run("pope", said, "--questions", popular) == 2
    error = capsys.readouterr().err
    assert f"{said}: record 2 is an answer to 'USER: IS THERE A" in error and f"of {popular} is 'Is there a" in error
    assert "give the question file that was asked" in error
    both = answers_of("popular", prompt=prompt), said, "--questions", random, "--questions", popular
    assert run("pope", *both) == 2
    assert f"are to {popular}: give the files in the same order" in capsys.readouterr().err
    pictured = answers_of("random", image=lambda one: "COCO_val2014_000000000777.jpg")
    assert run("pope", pictured, "--questions", random) == 2
    assert "a question about 'COCO_val2014_000000000777.jpg'" in capsys.readouterr().err
    assert run("pope", answers_of("random"), "--questions", popular) == 0
    assert capsys.readouterr().err.count("note: matched by number only") == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "no answer could be read; it looks like a question file"),
        (
            {"image_id": 1, "caption": "A dog."},
            "these are captions (image_id, caption); score them with vlm-guard ch",
        ),
        ({"answer": "%$"}, "no answer could be read: none of 30 says yes or no, the first is '%$'"),
    ],
)
def test_a_file_without_answers_is_no_score_of_zero(files, tmp_path, capsys, record, message):
    path = tmp_path / "given.jsonl"
    path.write_text((json.dumps(record) + "\n") * 30)
    given = files["questions", "random"] if record is None else str(path)
    assert run("pope", given, "--questions", files["questions", "random"]) == 2
    assert message in capsys.readouterr().err
