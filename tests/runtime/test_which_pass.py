"""Which pass is this? The guard acts on the passes it was asked for, and leaves or refuses all others by name."""

import copy
import threading
import warnings

import contrast_oracle as oracle
import pytest
import torch
from method_cases import options
from PIL import Image
from torch import nn
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from vlm_guard import builtin, wrap
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)

PROMPT = [Prompt(text_before=3, images=1, text_after=6, content=0)]
OTHER = [Prompt(text_before=5, images=1, text_after=3, content=1), Prompt(text_before=2, images=1, content=2)]
TEXT = [Prompt(text_before=9, images=0, content=4)]
ATTENTION = ["var", "act", "zerotuning", "vhr", "gift", "paint", "pai"]
CONTRAST = ["vcd", "m3id", "dola"]
STEPS = 4
RECORD = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": STEPS}


def guarded(zoo, method, **more):
    given = dict(options(method)) | more
    if method == "pai":
        given["guidance"] = 1.0
    return wrap(zoo.model, None, method, **given)


def run(model, inputs, **more):
    out = model.generate(**inputs, **{**RECORD, **more})
    return out.sequences, torch.stack(out.logits)


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


@pytest.fixture
def fresh(zoo_model):
    """A model of one's own, for tests that change it."""
    zoo = zoo_model("llava")
    return copy.copy(zoo), copy.deepcopy(zoo.model)


# -- the model is changed after wrap ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ATTENTION)
@pytest.mark.parametrize("way", ["set_attn_implementation", "config", "text config"])
def test_another_attention_implementation_is_followed(llava, method, way):
    inputs, model = llava.make_inputs(PROMPT), llava.model
    plain = run(model, inputs)
    with guarded(llava, method):
        expected = run(model, inputs)
    with guarded(llava, method):
        if way == "set_attn_implementation":
            model.set_attn_implementation("eager")
        elif way == "config":
            model.config._attn_implementation = "eager"
        else:
            model.config.text_config._attn_implementation = "eager"
        found = run(model, inputs)
        assert oracle.close(found[1], expected[1], 4.0)
        assert not oracle.close(found[1][:1], plain[1][:1]) or method == "gift", "it acts"
    assert model.config.text_config._attn_implementation == "eager", "what the user has set stays"
    model.set_attn_implementation("sdpa")
    assert_pristine(model)
    assert torch.equal(run(model, inputs)[1], plain[1])


@pytest.mark.parametrize("what", ["layer", "attention", "language model"])
def test_replaced_modules_are_refused_by_name(fresh, what):
    zoo, model = fresh
    inputs = zoo.make_inputs(PROMPT)
    language = model.model.language_model
    with wrap(model, None, "var", **options("var")) as guard:
        guard.generate(**inputs, max_new_tokens=2)
        if what == "layer":
            language.layers[1] = copy.deepcopy(type(language.layers[1])(language.config, 1))
        elif what == "attention":
            language.layers[1].self_attn = type(language.layers[1].self_attn)(language.config, 1)
        else:
            model.model.language_model = type(language)(language.config)
        name = {"layer": "layers.1", "attention": "layers.1.self_attn", "language model": "language_model"}[what]
        with pytest.raises(ValueError, match=rf"{name} was replaced after wrap.*wrap the model again"):
            guard.generate(**inputs, max_new_tokens=2)


def test_a_layer_that_computes_attention_another_way_is_found_at_the_end_of_the_prompt(fresh):
    zoo, model = fresh
    inputs = zoo.make_inputs(PROMPT)
    attention = model.model.language_model.layers[1].self_attn
    with wrap(model, None, "zerotuning", factor=0.3) as guard:
        attention.forward = lambda hidden_states, *args, **kwargs: (hidden_states, None)
        with pytest.raises(RuntimeError, match=r"edits of decoder layers 1 did not run.*zerotuning"):
            guard.generate(**inputs, max_new_tokens=2)
        del attention.forward
        guard.generate(**inputs, max_new_tokens=2)


# -- decoding loops of one's own -------------------------------------------------------------------------------


def own_loop(model, inputs, answer):
    """Logits of decoding the `answer` [B, STEPS] token by token over `model(...)`."""
    ids, mask, rest = inputs["input_ids"], inputs["attention_mask"], dict(inputs)
    del rest["input_ids"], rest["attention_mask"]
    out = model(input_ids=ids, attention_mask=mask, **rest, use_cache=True)
    logits = [out.logits[:, -1]]
    for step in range(STEPS - 1):
        token = answer[:, step : step + 1]
        mask = torch.cat((mask, torch.ones_like(token)), 1)
        # Families with multimodal positions take none from a mask, so without padding none is given.
        given = {} if bool(mask.all()) else {"attention_mask": mask}
        out = model(input_ids=token, **given, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[:, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("method", ATTENTION)
def test_own_loops_equal_generate(zoo_model, method, family):
    if method == "paint" and family != "llava":
        pytest.skip("paint needs a class token")
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPT)
    with guarded(zoo, method):
        sequences, expected = run(zoo.model, inputs)
        found = own_loop(zoo.model, inputs, sequences[:, -STEPS:])
    assert oracle.close(found, expected, 4.0)


@pytest.mark.parametrize("method", ["var", "act", "zerotuning", "vhr", "gift"])
def test_labels_tell_where_the_answer_begins(llava, method):
    """A loss over prompt and answer is that of the answer's guarded logits."""
    inputs = llava.make_inputs(PROMPT)
    with guarded(llava, method):
        sequences, logits = run(llava.model, inputs, eos_token_id=None, min_new_tokens=STEPS)
        length = inputs["input_ids"].shape[1]
        labels = sequences.clone()
        labels[:, :length] = -100
        whole = {**inputs, "input_ids": sequences, "attention_mask": torch.ones_like(sequences)}
        out = llava.model(**whole, labels=labels)
    found = out.logits[:, length - 1 : -1].transpose(0, 1)
    assert oracle.close(found, logits, 8.0)
    expected = nn.functional.cross_entropy(logits.transpose(0, 1).flatten(0, 1), sequences[:, length:].flatten())
    assert torch.allclose(out.loss, expected, atol=1e-4)


# -- contrasts outside of generate -----------------------------------------------------------------------------

CONTRASTS = {
    "vcd": {},
    "m3id": {"forgetting": 0.3},
    "pai": {"layers": "all"},
    "softpag": {"layers": "all"},
    "dola": {"candidates": "1-"},
    "icd": None,
    "lqcd": None,
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", ["vcd", "m3id", "pai", "softpag", "dola"])
def test_contrasts_in_own_loops_equal_generate(zoo_model, family, method):
    zoo = zoo_model(family)
    prompts = [*PROMPT, Prompt(text_before=4, images=1, text_after=9, content=2)]
    inputs = zoo.make_inputs(PROMPT if family == "qwen2_5_vl" else prompts)
    plain = run(zoo.model, inputs)[1]
    with wrap(zoo.model, None, method, **CONTRASTS[method]):
        sequences, expected = run(zoo.model, inputs, eos_token_id=None)
        found = own_loop(zoo.model, inputs, sequences[:, -STEPS:])
    assert torch.isfinite(found).all()
    assert oracle.close(found, expected, 8.0)
    assert not oracle.close(found[1:], plain[1:])
    assert_pristine(zoo.model)


@pytest.mark.parametrize("method", ["vcd", "m3id", "pai", "softpag", "dola"])
def test_contrasts_of_labelled_answers(llava, method):
    inputs = llava.make_inputs(PROMPT)
    length = inputs["input_ids"].shape[1]
    with wrap(llava.model, None, method, **CONTRASTS[method]):
        sequences, logits = run(llava.model, inputs, eos_token_id=None)
        labels = sequences.clone()
        labels[:, :length] = -100
        whole = {**inputs, "input_ids": sequences, "attention_mask": torch.ones_like(sequences)}
        out = llava.model(**whole, labels=labels)
    found = out.logits[:, length - 1 : -1].transpose(0, 1)
    assert oracle.close(found, logits, 8.0)
    expected = nn.functional.cross_entropy(logits.transpose(0, 1).flatten(0, 1), sequences[:, length:].flatten())
    assert torch.allclose(out.loss, expected, rtol=1e-4)


def test_a_contrast_that_counts_tokens_says_what_it_contrasts(llava):
    inputs = llava.make_inputs(PROMPT)
    plain = llava.model(**inputs).logits
    with wrap(llava.model, None, "m3id", forgetting=0.3), pytest.warns(UserWarning, match="pass labels"):
        found = llava.model(**inputs).logits
    assert torch.equal(found[:, :-1], plain[:, :-1])


def test_an_instruction_and_a_leading_question_outside_of_generate():
    model, processor = builtin()
    picture = {"type": "image", "image": Image.new("RGB", (96, 96), "white")}
    question = {"type": "text", "text": "There is a dog in the picture, isn't there?"}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [picture, question]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    plain = model(**inputs).logits[:, -1]
    for method in ("icd", "lqcd"):
        with wrap(model, processor, method):
            expected = torch.stack(model.generate(**inputs, **RECORD).logits)[0]
            found = model(**inputs).logits[:, -1]
        assert oracle.close(found, expected, 8.0)
        assert not oracle.close(found, plain)


def test_contrasts_that_cannot_be_followed_are_refused(llava, zoo_model):
    inputs = llava.make_inputs(PROMPT)
    with wrap(llava.model, None, "vcd") as guard:
        with guard.suspended():
            cache = llava.model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="past_key_values was not filled under this guard"):
            llava.model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)
    blip = zoo_model("blip_2")
    with wrap(blip.model, None, "vcd"), pytest.raises(ValueError, match=r"vcd.*call model\.generate"):
        blip.model(**blip.make_inputs(PROMPT))
    assert_pristine(blip.model)


@pytest.mark.parametrize("method", ["var", "pai"])
def test_the_class_function_is_refused(llava, method):
    inputs = llava.make_inputs(PROMPT)
    with guarded(llava, method):
        with pytest.raises(ValueError, match=r"call model\.generate"):
            type(llava.model).generate(llava.model, **inputs, max_new_tokens=2)
        run(llava.model, inputs)
    type(llava.model).generate(llava.model, **inputs, max_new_tokens=2)


# -- calls inside of calls -------------------------------------------------------------------------------------


class Asks(LogitsProcessor):
    """A logits processor that asks the same model about something else at every step."""

    def __init__(self, model, inputs, how):
        self.model, self.inputs, self.how, self.seen = model, inputs, how, []

    def __call__(self, input_ids, scores):
        if self.how == "forward":
            self.seen.append(self.model(**self.inputs).logits[:, -1])
        elif self.how == "loop":
            self.seen.append(own_loop(self.model, self.inputs, self.inputs["input_ids"][:, :STEPS]))
        else:
            self.seen.append(run(self.model, self.inputs)[1])
        return scores


@pytest.mark.parametrize("how", ["forward", "loop", "generate"])
@pytest.mark.parametrize("what", [PROMPT, OTHER, TEXT], ids=["same", "other", "text"])
@pytest.mark.parametrize("method", ["var", "paint", "vhr", "pai"])
def test_nested_calls_are_their_own_and_leave_the_outer_one_alone(llava, method, what, how):
    inputs, inner = llava.make_inputs(PROMPT), llava.make_inputs(what)
    with guarded(llava, method), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = run(llava.model, inputs)
        alone = {
            "forward": lambda: llava.model(**inner).logits[:, -1],
            "loop": lambda: own_loop(llava.model, inner, inner["input_ids"][:, :STEPS]),
            "generate": lambda: run(llava.model, inner)[1],
        }[how]()
        asks = Asks(llava.model, inner, how)
        found = run(llava.model, inputs, logits_processor=LogitsProcessorList([asks]))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert all(torch.equal(seen, alone) for seen in asks.seen)
    assert_pristine(llava.model)


@pytest.mark.parametrize("method", ["vcd", "pai"])
def test_generations_inside_a_contrast_are_their_own(llava, method):
    inputs, inner = llava.make_inputs(PROMPT), llava.make_inputs(OTHER)
    with wrap(llava.model, None, method, **options(method)):
        expected, alone = run(llava.model, inputs), run(llava.model, inner)
        asks = Asks(llava.model, inner, "generate")
        found = run(llava.model, inputs, logits_processor=LogitsProcessorList([asks]))
    assert torch.equal(found[1], expected[1])
    assert all(torch.equal(seen, alone[1]) for seen in asks.seen)


def test_parts_called_by_themselves_are_left_as_they_are_and_said_so(llava):
    inputs = llava.make_inputs(PROMPT)
    language = llava.model.model.language_model
    embeddings = llava.model.get_input_embeddings()(llava.make_inputs(OTHER)["input_ids"])
    plain = language(inputs_embeds=embeddings).last_hidden_state
    with guarded(llava, "var"):
        run(llava.model, inputs)
        with pytest.warns(UserWarning, match="called by itself"):
            found = language(inputs_embeds=embeddings).last_hidden_state
    assert torch.equal(found, plain)


# -- caches that hold part of a prompt -------------------------------------------------------------------------


def split_at(inputs, length):
    """The first `length` tokens as text, and the mask of the whole."""
    return {"input_ids": inputs["input_ids"][:, :length], "attention_mask": inputs["attention_mask"][:, :length]}


@pytest.mark.parametrize("method", ATTENTION)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_text_prefix_read_first_is_right_or_refused(zoo_model, method, family):
    if method == "paint" and family != "llava":
        pytest.skip("paint needs a class token")
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPT)
    with guarded(zoo, method), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = run(zoo.model, inputs)
        cache = zoo.model(**split_at(inputs, 2), use_cache=True, past_key_values=DynamicCache()).past_key_values
        if method in ("zerotuning", "vhr"):
            with pytest.raises(ValueError, match=f"{method} edits all rows"):
                run(zoo.model, inputs, past_key_values=cache)
            return
        found = run(zoo.model, inputs, past_key_values=cache)
    assert oracle.close(found[1], expected[1], 4.0)


def cropped_after(zoo, method, first, second, length):
    """Generate for `first`, cut its cache to `length` tokens, and go on with `second`."""
    with guarded(zoo, method):
        expected = run(zoo.model, second)
        cache = DynamicCache()
        zoo.model.generate(**first, **RECORD, past_key_values=cache)
        cache.crop(length - cache.get_seq_length())
        return expected, run(zoo.model, second, past_key_values=cache)


@pytest.mark.parametrize("method", ATTENTION)
def test_another_picture_behind_the_same_text(llava, method):
    first = llava.make_inputs([Prompt(text_before=4, images=1, text_after=6, content=0)])
    second = llava.make_inputs([Prompt(text_before=4, images=1, text_after=6, content=3)])
    second["input_ids"][:, :4] = first["input_ids"][:, :4]
    if method == "vhr":
        with pytest.raises(ValueError, match="vhr has to see the whole prompt"):
            cropped_after(llava, method, first, second, 4)
        return
    expected, found = cropped_after(llava, method, first, second, 4)
    assert oracle.close(found[1], expected[1], 4.0)


@pytest.mark.parametrize("method", ATTENTION)
def test_another_question_about_a_cached_picture(llava, method):
    first = llava.make_inputs([Prompt(text_before=4, images=1, text_after=6, content=0)])
    second = {name: value.clone() for name, value in first.items() if name != "pixel_values"}
    second["input_ids"][:, -3:] += 1
    length = first["input_ids"].shape[1] - 3
    with guarded(llava, method):
        expected = run(llava.model, {**second, "pixel_values": first["pixel_values"]})
        cache = DynamicCache()
        llava.model.generate(**first, **RECORD, past_key_values=cache)
        cache.crop(length - cache.get_seq_length())
        if method in ("act", "vhr", "gift"):
            with pytest.raises(ValueError, match=f"{method} has to see the whole prompt"):
                run(llava.model, second, past_key_values=cache)
            return
        found = run(llava.model, second, past_key_values=cache)
    assert oracle.close(found[1], expected[1], 4.0)


def test_paint_goes_on_with_a_picture_in_the_cache(llava):
    inputs = llava.make_inputs(PROMPT)
    with guarded(llava, "paint") as guard:
        cache = DynamicCache()
        first = run(llava.model, inputs, past_key_values=cache)[0]
        gain = guard.state.memory("paint", -1).gain.clone()
        more = torch.cat((first, first[:, :3]), 1)
        turn = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        found = run(llava.model, turn, past_key_values=cache)
        again = guard.state.memory("paint", -1).gain
        second = llava.make_inputs([Prompt(text_before=2, images=1, content=3)])
        ids = torch.cat((found[0], second["input_ids"]), 1)
        turn = {**second, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        run(llava.model, turn, past_key_values=cache)
        both = guard.state.memory("paint", -1).gain
    length = inputs["input_ids"].shape[1]
    assert gain[..., :length].any()
    assert torch.equal(again[..., :length], gain[..., :length])
    assert not again[..., length:].any()
    assert torch.equal(both[..., : again.shape[-1]], again)
    assert both[..., ids.shape[1] - second["input_ids"].shape[1] : ids.shape[1]].any(), "the new picture is marked"


# -- what generate is given ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*ATTENTION, "vcd", "m3id"])
def test_a_mask_that_is_left_out_is_inferred_as_transformers_does(llava, method):
    inputs = llava.make_inputs([*PROMPT, Prompt(text_before=8, images=1, text_after=9, content=2)])
    assert not inputs["attention_mask"].bool().all(), "the batch is padded"
    left_out = {name: value for name, value in inputs.items() if name != "attention_mask"}
    given = {**options(method)} | ({"guidance": 1.0} if method == "pai" else {})
    with wrap(llava.model, None, method, **given):
        expected = run(llava.model, inputs)
        found = run(llava.model, left_out)
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("method", ["var", "pai", "vcd"])
def test_the_prompt_by_its_other_name_and_by_position(llava, method):
    inputs = llava.make_inputs(PROMPT)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with wrap(llava.model, None, method, **options(method)):
        expected = run(llava.model, inputs)[0]
        named = run(llava.model, {**rest, "inputs": inputs["input_ids"]})[0]
        placed = llava.model.generate(inputs["input_ids"], **rest, **RECORD).sequences
    assert torch.equal(named, expected)
    assert torch.equal(placed, expected)


def test_classifier_free_guidance_works_beside_attention_and_is_refused_beside_a_contrast(llava):
    inputs = llava.make_inputs(PROMPT)
    with guarded(llava, "var"):
        one = run(llava.model, inputs, guidance_scale=1.5)
        assert torch.equal(run(llava.model, inputs, guidance_scale=1.5)[1], one[1])
        assert oracle.close(one[1][:1], run(llava.model, inputs)[1][:1])
    with wrap(llava.model, None, "pai") as guard, pytest.raises(ValueError, match=r"pai.*guidance_scale"):
        guard.generate(**inputs, guidance_scale=1.5, max_new_tokens=2)


# -- threads, and giving the model back ------------------------------------------------------------------------


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
