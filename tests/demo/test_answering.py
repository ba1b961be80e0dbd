import threading

import pytest
import torch

from vlm_guard.demo.answering import GenerationSettings
from vlm_guard.method.registry import resolve_methods
from vlm_guard.runtime.installation import GUARD_ATTRIBUTE

PROMPT = "Please describe this image in detail."


def stock_answer(answering_model, image, **arguments):
    inputs = answering_model.encode(image, PROMPT)
    with torch.inference_mode():
        output = answering_model.model.generate(**inputs, **arguments)
    return tuple(output[0, inputs["input_ids"].shape[1] :].tolist())


def test_the_plain_answer_is_the_models_own(answering_model, pictures):
    image = pictures.first().image
    answer = answering_model.answer(image, PROMPT)
    assert answer.token_ids == stock_answer(answering_model, image, max_new_tokens=96, do_sample=False)
    assert answer.ending == "finished" and answer.seconds > 0 and answer.words


def test_answers_grow(answering_model, pictures, monkeypatch):
    monkeypatch.setattr("vlm_guard.demo.answering.STREAM_SECONDS", 0.0)
    growing = list(answering_model.stream(pictures.first().image, PROMPT))
    lengths = [len(answer.token_ids) for answer in growing]
    assert len(growing) > 5 and lengths == sorted(lengths)
    assert all(growing[-1].text.startswith(answer.text.rstrip("�")) for answer in growing)
    assert [answer.ending for answer in growing[:-1]] == ["running"] * (len(growing) - 1)


def test_the_model_is_left_unguarded(answering_model, pictures):
    image = pictures.first().image
    before = answering_model.answer(image, PROMPT)
    guarded = answering_model.answer(image, PROMPT, resolve_methods("pai", {"gain": 1.0, "guidance": 3.0}))
    assert guarded.token_ids != before.token_ids
    assert GUARD_ATTRIBUTE not in vars(answering_model.model)
    assert answering_model.answer(image, PROMPT).token_ids == before.token_ids


def test_the_seed_decides_sampling(answering_model, pictures):
    image = pictures.first().image
    hot = {"temperature": 1.5, "max_new_tokens": 24}
    texts = [answering_model.answer(image, PROMPT, (), GenerationSettings(seed=s, **hot)).text for s in (1, 1, 2, 3)]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def test_stopping_ends_an_answer_early(answering_model, pictures, monkeypatch):
    monkeypatch.setattr("vlm_guard.demo.answering.STREAM_SECONDS", 0.0)
    stop = threading.Event()
    seen = []
    for answer in answering_model.stream(pictures.first().image, PROMPT, stop=stop):
        seen.append(answer)
        stop.set()
    assert seen[-1].ending == "stopped"
    assert 1 <= len(seen[-1].token_ids) < len(answering_model.answer(pictures.first().image, PROMPT).token_ids)


def test_a_finished_answer_stops_nothing_else(answering_model, pictures):
    stop = threading.Event()
    for _ in range(5):
        assert answering_model.answer(pictures.first().image, PROMPT, stop=stop).ending == "finished"
    assert not stop.is_set()


def test_a_visitor_who_leaves_frees_the_model(answering_model, pictures, monkeypatch):
    monkeypatch.setattr("vlm_guard.demo.answering.STREAM_SECONDS", 0.0)
    growing = answering_model.stream(pictures.first().image, PROMPT, resolve_methods("pai"))
    next(growing)
    growing.close()
    assert GUARD_ATTRIBUTE not in vars(answering_model.model)
    assert answering_model.answer(pictures.first().image, PROMPT).ending == "finished"


def test_the_token_limit_is_noticed(answering_model, pictures):
    answer = answering_model.answer(pictures.first().image, PROMPT, (), GenerationSettings(max_new_tokens=5))
    assert len(answer.token_ids) == 5 and answer.ending == "limit"


def test_two_visitors_at_once_get_their_own_answers(answering_model, pictures):
    images = [pictures.picture(number).image for number in pictures.ids[:4]]
    methods = [(), resolve_methods("pai"), (), resolve_methods("vcd")]
    alone = [answering_model.answer(image, PROMPT, method) for image, method in zip(images, methods)]
    together = [None] * 4

    def ask(place):
        together[place] = answering_model.answer(images[place], PROMPT, methods[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", "empty"), ("   ", "empty"), ("x" * 3000, "3000 characters"), ("a <image> b", "leave it out")],
)
def test_unusable_prompts_are_refused(answering_model, pictures, prompt, words):
    with pytest.raises(ValueError, match=words):
        answering_model.answer(pictures.first().image, prompt)


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": 0}, {"max_new_tokens": 5000}, {"temperature": -1.0}, {"temperature": 3.0}, {"seed": -1}],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="allowed"):
        GenerationSettings(**wrong)


def test_a_failing_generation_raises_here_and_frees_the_model(answering_model, pictures, monkeypatch):
    def fail(*arguments, **named):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(answering_model.model, "generate", fail, raising=False)
    with pytest.raises(RuntimeError, match="out of memory"):
        answering_model.answer(pictures.first().image, PROMPT)
    monkeypatch.undo()
    assert answering_model.answer(pictures.first().image, PROMPT).words


def test_replay_follows_the_answer_whatever_guards_it(answering_model, pictures):
    image, settings = pictures.first().image, GenerationSettings(max_new_tokens=16)
    answer = answering_model.answer(image, PROMPT, (), settings)
    for methods in ((), resolve_methods("pai", {"gain": 1.0, "guidance": 5.0}), resolve_methods("vcd")):
        steps = answering_model.replay(image, PROMPT, methods, answer, settings, lambda trace, guard: trace.steps)
        assert steps == len(answer.token_ids)
