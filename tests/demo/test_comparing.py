import threading
from dataclasses import replace

import pytest

from vlm_guard.demo.answering import Answer, GenerationSettings
from vlm_guard.demo.comparing import Comparison, Search, compare, search_example, verdict
from vlm_guard.demo.panels import side_html
from vlm_guard.demo.visitors import Visitors

PROMPT = "Please describe this image in detail."


def comparison(pictures, *methods, **options):
    return Comparison(
        picture=pictures.first(),
        prompt=PROMPT,
        settings=GenerationSettings(max_new_tokens=32),
        methods=methods,
        options=options,
    )


def test_plain_first_then_guarded(answering_model, pictures):
    steps = list(compare(answering_model, comparison(pictures, "pai")))
    assert steps[-1].complete and not steps[-1].error
    assert steps[0].guarded is None
    settings = GenerationSettings(max_new_tokens=32)
    assert steps[-1].plain.text == answering_model.answer(pictures.first().image, PROMPT, (), settings).text


def test_neutral_options_change_nothing(answering_model, pictures):
    options = {"pai.gain": 0.0, "pai.guidance": 1.0}
    last = list(compare(answering_model, comparison(pictures, "pai", **options)))[-1]
    assert last.plain.token_ids == last.guarded.token_ids
    assert "changed nothing" in verdict(last)


def test_wrong_options_are_told_before_anything_runs(answering_model, pictures):
    steps = list(compare(answering_model, comparison(pictures, "pai", **{"pai.gain": 9.0})))
    assert len(steps) == 1 and steps[0].plain is None
    assert steps[0].error == "pai: option gain is 9.0; allowed: 0.0 to 1.0"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("sink_dimensions", "5000", "must lie in 0 to"), ("layers", "banana", "banana")],
)
def test_a_method_that_cannot_be_applied_is_told_before_the_plain_answer(
    answering_model, pictures, option, value, said
):
    steps = list(compare(answering_model, comparison(pictures, "var", **{f"var.{option}": value})))
    assert len(steps) == 1 and steps[0].plain is None and said in steps[0].error
    for side in ("plain", "guarded"):
        shown = side_html(side, steps[0])
        assert "Waits" not in shown and "see the error below" in shown, "no card waits for ever"


def test_the_error_is_the_command_lines(answering_model, pictures, monkeypatch, tmp_path, capsys):
    from vlm_guard.cli import main

    pictures.first().image.save(tmp_path / "picture.png")
    asked = comparison(pictures, "var", **{"var.sink_dimensions": "5000"})
    page = list(compare(answering_model, asked))[-1].error
    with pytest.raises(SystemExit) as ended:
        main(
            ["generate", str(tmp_path / "picture.png"), PROMPT, "--method", "var", "--set", "var.sink_dimensions=5000"]
        )
    assert ended.value.code == 2
    assert f"error: {page}" in capsys.readouterr().err


def test_a_stop_before_the_turn_came_asks_nothing_more(answering_model, pictures):
    stop = threading.Event()
    stop.set()
    last = list(compare(answering_model, comparison(pictures, "pai"), stop))[-1]
    assert last.plain.ending == "stopped" and last.guarded is None


def answered(pictures, plain, guarded, objects=("dog", "bench")):
    base = comparison(pictures, "pai")
    return replace(
        base,
        picture=replace(base.picture, objects=objects),
        plain=Answer(text=plain, ending="finished"),
        guarded=Answer(text=guarded, ending="finished"),
    )


@pytest.mark.parametrize(
    ("plain", "guarded", "said"),
    [
        ("A dog and a cat.", "A dog.", "The guard helped"),
        ("A dog, a bench and a cat.", "A dog.", "but less said"),
        ("A dog.", "A dog and a cat.", "made it worse"),
        ("A dog and a cat.", "A dog and a cat.", "changed nothing"),
        ("A dog and a cat.", "A dog and a kite.", "Hallucinated mentions: 1 plain, 1 guarded"),
        ("A dog and a cat.", "the the of", "The guarded answer names no known object, so nothing can be said."),
        ("the the of", "A cat.", "The plain answer names no known object, so nothing can be said."),
        ("the of", "of the", "Neither answer names a known object, so nothing can be said."),
    ],
)
def test_the_verdict_says_what_happened_either_way(pictures, plain, guarded, said):
    assert said in verdict(answered(pictures, plain, guarded))


def test_no_verdict_on_truth_nobody_knows(pictures):
    assert "not known" in verdict(answered(pictures, "A dog.", "A cat.", objects=None))


def test_a_search_counts_what_it_passes_over(pictures):
    search = Search()
    assert not search.count(answered(pictures, "A dog.", "A dog and a cat."))
    assert not search.count(answered(pictures, "A dog and a cat.", "A dog and a cat."))
    assert not search.count(answered(pictures, "A dog, a bench, a cat.", "A dog."))  # fewer objects named
    assert not search.count(answered(pictures, "A cat and a kite.", "A cat."))  # names nothing that is there
    assert search.count(answered(pictures, "A dog and a cat.", "A dog."))
    assert (search.tried, search.hallucinated, search.helped, search.worsened) == (5, 4, 3, 1)
    assert not search.count(answered(pictures, "A cat.", "the the of"))  # no known object is no help
    assert (search.helped, search.silent) == (3, 1) and "no known object in 1" in search.summary(False)
    assert "picked because the guard helped" in search.summary(True)
    assert "6 pictures" in search.summary(False) and "more in 1" in search.summary(False)


def test_searching_goes_on_from_the_picture_and_ends(answering_model, pictures):
    start = comparison(pictures, "pai", **{"pai.gain": 0.0, "pai.guidance": 1.0})
    steps = list(search_example(answering_model, pictures, start, threading.Event()))
    # Neutral options can never help, so every picture is tried once.
    assert [step.picture.image_id for step, _, _ in steps[:2]] == pictures.ids[1:3]
    assert f"Looked at {len(pictures.ids)} pictures" in steps[-1][1] and "None was a clear gain" in steps[-1][1]
    assert not any(found for _, _, found in steps)


def test_searching_stops_on_request(answering_model, pictures):
    stop = threading.Event()
    stop.set()
    steps = list(search_example(answering_model, pictures, comparison(pictures, "pai"), stop))
    assert len(steps) == 1 and steps[0][1] == "Stopped."


def test_visitors_stop_only_their_own():
    visitors = Visitors()
    mine, yours = visitors.begin("me"), visitors.begin("you")
    visitors.stop("me")
    assert mine.is_set() and not yours.is_set()
    again = visitors.begin("you")
    assert yours.is_set() and visitors.is_current("you", again) and not visitors.is_current("you", yours)
    visitors.forget("you")
    assert again.is_set() and not visitors.current("you").is_set()
