"""Threads wait for a running generation, and a model gets back what was its own."""

import threading

import contrast_oracle as oracle
import pytest
import torch
from pass_cases import PROMPT, STEPS, guarded, run
from transformers import LogitsProcessor, LogitsProcessorList

from zoo import assert_pristine

torch.set_num_threads(1)


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


# -- threads, and giving the model back ------------------------------------------------------------------------------


class Pauses(LogitsProcessor):
    """Lets another thread try something in the middle of a generation."""

    def __init__(self):
        self.reached, self.go_on, self.steps = threading.Event(), threading.Event(), 0

    def __call__(self, input_ids, scores):
        self.steps += 1
        if self.steps == 2:
            self.reached.set()
            self.go_on.wait(0.3)
        return scores


@pytest.mark.parametrize("way", ["remove", "suspended", "model"])
def test_other_threads_wait_for_a_running_generation(llava, way):
    inputs, done = llava.make_inputs(PROMPT), []
    guard = guarded(llava, "var")
    expected = run(llava.model, inputs)
    pauses = Pauses()

    def other():
        pauses.reached.wait(20)
        if way == "remove":
            guard.remove()
        elif way == "suspended":
            with guard.suspended():
                done.append(run(llava.model, inputs)[1])
        else:
            done.append(llava.model(**inputs).logits[:, -1])
        pauses.go_on.set()

    thread = threading.Thread(target=other)
    thread.start()
    found = run(llava.model, inputs, logits_processor=LogitsProcessorList([pauses]))
    thread.join(20)
    assert torch.equal(found[1], expected[1])
    assert pauses.steps == STEPS
    guard.remove()
    assert_pristine(llava.model)
    plain = run(llava.model, inputs)[1]
    if way == "suspended":
        assert torch.equal(done[0], plain)
    if way == "model":
        assert oracle.close(done[0], expected[1][0])


def test_remove_inside_a_generation_is_refused(llava):
    inputs = llava.make_inputs(PROMPT)

    class Removes(LogitsProcessor):
        def __call__(self, input_ids, scores):
            guard.remove()
            return scores

    guard = guarded(llava, "var")
    with pytest.raises(ValueError, match="while the model generates"):
        guard.generate(**inputs, max_new_tokens=2, logits_processor=LogitsProcessorList([Removes()]))
    guard.remove()
    assert_pristine(llava.model)


def test_what_the_user_has_put_on_the_model_comes_back(llava):
    inputs, model = llava.make_inputs(PROMPT), llava.model
    own, later = model.generate, lambda *args, **kwargs: "later"
    model.generate = own_generate = lambda *args, **kwargs: own(*args, **kwargs)
    try:
        with guarded(llava, "var"):
            run(model, inputs)
        assert model.__dict__["generate"] is own_generate
        guard = guarded(llava, "var")
        model.generate = later
        guard.remove()
        assert model.__dict__["generate"] is later
    finally:
        del model.generate
    assert_pristine(model)


def test_every_step_is_undone_although_one_fails(llava):
    guard = guarded(llava, "var")

    def fail():
        raise RuntimeError("this step fails")

    guard._editing.add(fail)
    with pytest.raises(RuntimeError, match="this step fails"):
        guard.remove()
    assert_pristine(llava.model)
