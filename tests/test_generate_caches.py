"""The caches that a guarded `generate` can fill, and conversations that go on with one."""

import contextlib
import copy
import types

import contrast_oracle as oracle
import method_cases
import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import Fp8QuantizedLayer

from vlm_guard import wrap
from vlm_guard.methods.var import method as var
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)

OPTIONS = {"var": method_cases.options("var"), "m3id": {"forgetting": 0.4, "plausibility": 0.0}}
PROMPTS = [
    Prompt(text_before=3, images=1, text_after=4, content=0),
    Prompt(text_before=9, images=1, text_after=6, content=1),
]
QUESTION = [20, 21, 22]

every_kind = pytest.mark.parametrize("method", OPTIONS)


def run(model, inputs, steps=5, **settings):
    with torch.no_grad():
        out = model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
    return out.sequences, torch.stack(out.logits)


def guarded(zoo, method):
    return wrap(zoo.model, None, method, **OPTIONS[method])


@pytest.fixture
def llava(zoo_model):
    zoo = zoo_model("llava")
    yield zoo
    assert_pristine(zoo.model)


# -- kinds of caches ------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(("family", "cache"), [("gemma3", "dynamic"), ("cohere2_vision", "static")])
def test_sliding_layers_in_every_cache_equal_no_cache(zoo_model, family, cache, method):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPTS)
    settings = {"cache_implementation": cache, "disable_compile": True}
    with guarded(zoo, method):
        cached, uncached = run(zoo.model, inputs, 8, **settings), run(zoo.model, inputs, 8, use_cache=False)
    assert torch.equal(cached[0], uncached[0])
    assert oracle.close(cached[1], uncached[1], 2.0)
    assert_pristine(zoo.model)


@every_kind
def test_quantised_cache_that_loses_nothing_equals_the_plain_one(llava, monkeypatch, method):
    """transformers' quantised cache with rounding taken out of it: what the guard does with it is exact."""
    inputs = llava.make_inputs(PROMPTS)
    with guarded(llava, method):
        expected = run(llava.model, inputs)
        monkeypatch.setattr(Fp8QuantizedLayer, "_quantize", lambda self, states, scale=None: (states, 1.0))
        monkeypatch.setattr(Fp8QuantizedLayer, "_dequantize", lambda self, states: states[0])
        found = run(llava.model, inputs, cache_implementation="quantized", cache_config={"backend": "fp8"})
    assert torch.equal(found[0], expected[0])
    assert oracle.close(found[1], expected[1])


@every_kind
@pytest.mark.parametrize("backend", ["fp8", "quanto", "hqq"])
def test_quantised_cache_costs_no_more_than_without_the_guard(llava, backend, method):
    """The same tokens are forced, so that the logits differ by the rounding of keys and values alone."""
    pytest.importorskip({"fp8": "torch", "quanto": "optimum.quanto", "hqq": "hqq"}[backend])
    if backend == "quanto" and method != "var":
        pytest.skip("a difference of branches enlarges quanto's coarse rounding, by how much depends on the prompt")
    inputs = llava.make_inputs(PROMPTS[:1])
    options = {} if backend == "fp8" else {"nbits": 4, "q_group_size": 16}
    settings = {"cache_implementation": "quantized", "cache_config": {"backend": backend, **options}}

    def error():
        tokens, exact = run(llava.model, inputs)
        force = {"prefix_allowed_tokens_fn": lambda row, ids: [int(tokens[0, len(ids)])]}
        rounded = run(llava.model, inputs, **settings, **force)[1]
        assert torch.equal(rounded[0], exact[0]), "the prompt is read before anything is rounded"
        return float((rounded - exact).abs().max())

    plain = error()
    with guarded(llava, method):
        assert 0 < error() <= 4 * plain


@pytest.fixture
def streams(monkeypatch):
    """CUDA streams, or without CUDA stand-ins for them: then everything runs but the copies between devices."""
    if torch.cuda.is_available():
        return
    stream = contextlib.nullcontext()
    stream.wait_stream = lambda other: None
    monkeypatch.setattr(torch, "Stream", lambda *args, **kwargs: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: stream)


@every_kind
@pytest.mark.parametrize("family", ["llava", "gemma3"])
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_offloaded_caches_equal_the_plain_one(zoo_model, streams, family, cache, method):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPTS)
    with guarded(zoo, method):
        expected = run(zoo.model, inputs)
        found = run(zoo.model, inputs, cache_implementation=cache, disable_compile=True)
    assert torch.equal(found[0], expected[0])
    assert oracle.close(found[1], expected[1])
    assert_pristine(zoo.model)


# -- conversations --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sinks_outside(places):
    """Inside, no token at these `places` of a conversation is a sink, as answers are none while they are generated."""
    found = var.sink_activation

    def elsewhere(hidden, dimensions):
        activation = found(hidden, dimensions)
        activation[:, places] = 0
        return activation

    var.sink_activation = elsewhere
    try:
        yield
    finally:
        var.sink_activation = found


def first_turn(zoo, prompt, steps=4):
    """The inputs of a turn, the cache after it, and the whole conversation with the next question."""
    inputs = zoo.make_inputs([prompt])
    cache = DynamicCache(config=zoo.model.config.get_text_config())
    answered = run(zoo.model, inputs, steps, past_key_values=cache)[0]
    return inputs, cache, torch.cat((answered, torch.tensor([QUESTION])), 1)


def second_turn(zoo, cache, ids, only_new=False, **images):
    mask = torch.ones_like(ids)
    ids = ids[:, cache.get_seq_length() :] if only_new else ids
    return run(zoo.model, {"input_ids": ids, "attention_mask": mask, **images}, past_key_values=cache)


@pytest.mark.parametrize("only_new", [False, True], ids=["whole conversation", "only what is new"])
def test_second_turn_on_the_first_turns_cache_equals_reading_everything_anew(llava, only_new):
    with guarded(llava, "var"):
        inputs, cache, ids = first_turn(llava, PROMPTS[0])
        generated = slice(inputs["input_ids"].shape[1], cache.get_seq_length())
        found = second_turn(llava, cache, ids, only_new)
        with sinks_outside(generated):
            whole = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            expected = run(llava.model, whole)
        changed = run(llava.model, whole)
    assert torch.equal(found[0][:, -5:], expected[0][:, -5:])
    assert oracle.close(found[1], expected[1])
    assert not oracle.close(expected[1], changed[1]), "some token of the answer would be a sink if it were read"


def test_second_turn_brings_a_picture_of_its_own(llava):
    both = llava.make_inputs([Prompt(text_before=3, images=2, between=2, text_after=4, content=0)])
    image = llava.image_token_id
    second = int((both["input_ids"][0] == image).nonzero()[16])  # 16 visual tokens each
    first_ids = both["input_ids"][:, : second - 1]
    with guarded(llava, "var"):
        cache = DynamicCache(config=llava.model.config.get_text_config())
        turn = {"input_ids": first_ids, "attention_mask": torch.ones_like(first_ids)}
        answered = run(llava.model, turn | {"pixel_values": both["pixel_values"][:1]}, 4, past_key_values=cache)[0]
        ids = torch.cat((answered, both["input_ids"][:, second - 1 :]), 1)
        generated = slice(first_ids.shape[1], cache.get_seq_length())
        found = second_turn(llava, cache, ids, pixel_values=both["pixel_values"][1:])
        with sinks_outside(generated):
            expected = run(llava.model, both | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert torch.equal(found[0], expected[0])
    assert oracle.close(found[1], expected[1])


def test_two_conversations_take_turns(llava):
    with guarded(llava, "var"):
        alone = []
        for prompt in PROMPTS:
            _, cache, ids = first_turn(llava, prompt)
            alone.append(second_turn(llava, cache, ids))
        turns = [first_turn(llava, prompt) for prompt in PROMPTS]
        together = [second_turn(llava, cache, ids) for _, cache, ids in turns]
    for found, expected in zip(together, alone):
        assert torch.equal(found[1], expected[1])


def test_caches_of_unknown_content_are_refused(llava):
    with guarded(llava, "var") as guard:
        _, cache, ids = first_turn(llava, PROMPTS[0])
        with pytest.raises(ValueError, match="not filled under this guard"):
            second_turn(llava, copy.deepcopy(cache), ids)
        guard.remove()
        guard.attach()
        with pytest.raises(ValueError, match="not filled under this guard"):
            second_turn(llava, cache, ids)


@every_kind
def test_a_chat_with_pictures_in_earlier_turns_equals_no_cache(llava, method):
    """Read from the beginning, as chat templates give it; the rows have different numbers of pictures."""
    prompts = [Prompt(text_before=2, images=3, between=5, text_after=6, content=0), PROMPTS[1]]
    inputs = llava.make_inputs(prompts)
    with guarded(llava, method):
        cached, uncached = run(llava.model, inputs), run(llava.model, inputs, use_cache=False)
        alone = [run(llava.model, llava.make_inputs([prompt])) for prompt in prompts]
    assert oracle.close(cached[1], uncached[1], 2.0)
    for row, (sequences, logits) in enumerate(alone):
        assert torch.equal(cached[0][row, -5:], sequences[0, -5:])
        assert oracle.close(cached[1][:, row], logits[:, 0], 2.0)


def test_contrast_refuses_a_cache_of_the_caller(llava):
    inputs = llava.make_inputs(PROMPTS[:1])
    seen = []
    hook = llava.model.register_forward_pre_hook(lambda *given: seen.append(given))
    try:
        with guarded(llava, "m3id"):
            expected = run(llava.model, inputs)
            seen.clear()
            with pytest.raises(ValueError, match="cannot go on with past_key_values"):
                run(llava.model, inputs, past_key_values=DynamicCache())
            assert not seen, "refused before a forward pass"
            assert torch.equal(run(llava.model, inputs)[0], expected[0])
    finally:
        hook.remove()


# -- videos ---------------------------------------------------------------------------------------------------

VIDEO_FAMILIES = ["llava_onevision", "video_llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]


@every_kind
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_videos_beside_pictures(zoo_model, family, method):
    zoo = zoo_model(family)
    prompts = [
        Prompt(text_before=3, images=1, videos=1, text_after=4, content=0),
        Prompt(text_before=5, images=0, videos=1, text_after=9, content=1),
    ]
    inputs = zoo.make_inputs(prompts)
    plain = run(zoo.model, inputs)
    with guarded(zoo, method) as guard:
        cached, uncached = run(zoo.model, inputs), run(zoo.model, inputs, use_cache=False)
        if method == "var":
            assert guard.state.visual.sum(-1).tolist() == zoo.visual_tokens(prompts)
    assert torch.equal(cached[0], uncached[0])
    assert oracle.close(cached[1], uncached[1], 4.0)
    assert not oracle.close(cached[1][1:], plain[1][1:]), "it acts"
    assert_pristine(zoo.model)


def test_contrast_noises_videos_too(zoo_model):
    zoo = zoo_model("video_llava")
    inputs = zoo.make_inputs([Prompt(images=0, videos=1, content=0)])
    still = types.SimpleNamespace(seen=[])
    tower = zoo.model.model.get_video_features

    def watch(pixel_values_videos, **kwargs):
        still.seen.append(pixel_values_videos.clone())
        return tower(pixel_values_videos, **kwargs)

    zoo.model.model.get_video_features = watch
    try:
        with wrap(zoo.model, None, "vcd"):
            run(zoo.model, inputs, 2)
    finally:
        del zoo.model.model.get_video_features
    assert len(still.seen) == 2
    assert torch.equal(still.seen[0], inputs["pixel_values_videos"])
    assert not torch.equal(still.seen[1], still.seen[0])
    assert_pristine(zoo.model)
