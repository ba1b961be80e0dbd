"""Threads, copies and many cycles: nothing mixes and nothing leaks."""

import copy
import gc
import pickle
import threading
import weakref

import method_cases
import pytest
import torch
from PIL import Image
from transformers import AttentionInterface

from vlm_guard import builtin, wrap
from vlm_guard.method.registry import method_names
from vlm_guard.runtime.attention_switch import _switched
from zoo import Prompt, assert_pristine, build

torch.set_num_threads(1)
VAR_OPTIONS = method_cases.options("var")
PROMPTS = [Prompt(text_before=3, images=1, text_after=4, content=index) for index in range(4)]


def answer(model, inputs):
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=6, do_sample=False)


def in_threads(*functions):
    """Run the functions at the same time; their results, or the first exception."""
    results, errors = [None] * len(functions), []

    def call(place, function):
        try:
            results[place] = function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_two_guarded_models_in_two_threads():
    first, second = build("llava"), build("qwen2_5_vl")
    jobs = [(zoo, zoo.make_inputs([prompt])) for prompt in PROMPTS for zoo in (first, second)]
    with wrap(first.model, None, "var", **VAR_OPTIONS), wrap(second.model, None, "var", **VAR_OPTIONS):
        expected = [answer(zoo.model, inputs) for zoo, inputs in jobs]
        for _ in range(3):
            halves = in_threads(
                lambda: [answer(zoo.model, inputs) for zoo, inputs in jobs if zoo is first],
                lambda: [answer(zoo.model, inputs) for zoo, inputs in jobs if zoo is second],
            )
            assert all(torch.equal(*pair) for pair in zip(halves[0], expected[0::2]))
            assert all(torch.equal(*pair) for pair in zip(halves[1], expected[1::2]))
    assert_pristine(first.model)
    assert_pristine(second.model)


def test_one_guarded_model_asked_from_two_threads():
    zoo = build("llava")
    inputs = [zoo.make_inputs([prompt]) for prompt in PROMPTS]
    with wrap(zoo.model, None, "var", **VAR_OPTIONS):
        expected = [answer(zoo.model, item) for item in inputs]
        halves = in_threads(
            lambda: [answer(zoo.model, item) for item in inputs[:2] * 3],
            lambda: [answer(zoo.model, item) for item in inputs[2:] * 3],
        )
    assert all(torch.equal(*pair) for pair in zip(halves[0], expected[:2] * 3))
    assert all(torch.equal(*pair) for pair in zip(halves[1], expected[2:] * 3))


def test_a_failing_request_does_not_disturb_the_next():
    zoo = build("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    with wrap(zoo.model, None, "var", **VAR_OPTIONS):
        expected = answer(zoo.model, inputs)
        with pytest.raises(ValueError):
            zoo.model.generate(input_ids=inputs["input_ids"], pixel_values=None, max_new_tokens=-1)
        assert torch.equal(answer(zoo.model, inputs), expected)
    assert_pristine(zoo.model)


def test_a_guarded_model_is_neither_copied_nor_pickled(zoo_model):
    model = zoo_model("llava").model
    with wrap(model, None, "var", **VAR_OPTIONS):
        with pytest.raises(ValueError, match=r"cannot be copied; call .remove\(\)"):
            copy.deepcopy(model)
        with pytest.raises(ValueError, match="cannot be pickled"):
            pickle.dumps(model)
    assert copy.deepcopy(model) is not model
    assert_pristine(model)


def test_a_thousand_cycles_leave_nothing(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    with wrap(zoo.model, None, "var", **VAR_OPTIONS) as guard, torch.no_grad():
        zoo.model(**inputs)
        names = set(AttentionInterface._global_mapping)
        reference = weakref.ref(guard)
    del guard
    for cycle in range(1000):
        guard = wrap(zoo.model, None, "var", **VAR_OPTIONS)
        if cycle % 100 == 0:
            with torch.no_grad():
                zoo.model(**inputs)
        guard.remove()
    del guard
    gc.collect()
    assert reference() is None
    assert set(AttentionInterface._global_mapping) == names
    # Only this model's: a page of the demo's tests may be answering in the background.
    configs = {id(module.config) for module in zoo.model.modules() if hasattr(module, "config")}
    assert not configs & _switched.keys()
    assert_pristine(zoo.model)


@pytest.fixture(scope="module")
def built_in():
    """The built-in model and its processor, read once."""
    return builtin()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", method_names())
def test_a_generation_frees_its_tensors_without_the_garbage_collector(method, built_in):
    """Caches that lie in reference cycles would pile up on a GPU."""
    model, processor = built_in
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "There is a dog, isn't there?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (96, 96), "red")], return_tensors="pt")
    options = {"layers": "all"} if method == "vhr" else {}

    def bytes_alive():
        return sum(item.numel() * item.element_size() for item in gc.get_objects() if type(item) is torch.Tensor)

    with wrap(model, processor, method, **options) as guard:
        guard.generate(**inputs, max_new_tokens=3, do_sample=False)
        gc.collect()
        gc.disable()
        try:
            before = bytes_alive()
            for _ in range(5):
                guard.generate(**inputs, max_new_tokens=3, do_sample=False)
            grown = bytes_alive() - before
        finally:
            gc.enable()
    prompt_cache = 2 * 4 * inputs["input_ids"].shape[1] * model.config.text_config.hidden_size
    assert grown < prompt_cache, f"{grown} bytes after five generations; one layer's keys and values are {prompt_cache}"
