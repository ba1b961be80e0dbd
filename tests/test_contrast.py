"""Contrast decoding: the formula, `generate`'s features, beams, entry points and refusals."""

import math

import contrast_oracle as oracle
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from vlm_guard import wrap
from vlm_guard.contrast.unguarded import contrast_generate, contrast_processor
from vlm_guard.method.contrasting import contrast_logits
from vlm_guard.method.registry import method_class
from vlm_guard.methods.m3id import M3ID
from vlm_guard.methods.pai import PAI
from vlm_guard.methods.vcd import VCD
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine, build

torch.set_num_threads(1)

PROMPTS = list(UNEQUAL_PROMPTS)
RECORD = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True, "max_new_tokens": 5}
STRONG = {"forgetting": 0.4}


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


@pytest.fixture
def inputs(llava):
    return llava.make_inputs(PROMPTS)


# -- the formula ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("plausibility", [0.01, 0.1, 0.2, 1.0])
def test_formula_entry_by_entry(strength, plausibility):
    torch.manual_seed(0)
    positive, negative = torch.randn(3, 50), torch.randn(3, 50)
    mixed = contrast_logits(positive, negative, strength, plausibility)
    combine = oracle.formula(strength, plausibility)
    expected = torch.stack([combine(p, n, 0) for p, n in zip(positive, negative)])
    assert oracle.close(mixed, expected, 0.1)


def test_worked_example():
    positive = torch.tensor([[2.0, 1.0, 0.0, -3.0]])
    negative = torch.tensor([[1.0, 2.0, 0.0, -3.0]])
    mixed = contrast_logits(positive, negative, 1.0, 0.1)
    assert mixed.tolist() == [[3.0, 0.0, 0.0, -10003.0]]  # ln 0.1 = -2.3: the last is below 2 - 2.3
    assert mixed.softmax(-1)[0, -1] == 0.0


def test_plausibility_of_one_leaves_the_best_and_none_leaves_all():
    logits = torch.randn(2, 30)
    assert int((contrast_logits(logits, logits, 1.0, 1.0).softmax(-1) > 0).sum()) == 2
    assert torch.equal(contrast_logits(logits, logits, 1.0, 0.0), logits)


def test_constants_per_row_of_the_negative_change_no_probability():
    positive, negative = torch.randn(2, 30), torch.randn(2, 30)
    first = contrast_logits(positive, negative, 0.7, 0.1).softmax(-1)
    second = contrast_logits(positive.log_softmax(-1), negative + 3.0, 0.7, 0.1).softmax(-1)
    assert torch.allclose(first, second, atol=1e-6)


# -- generate's features --------------------------------------------------------------------------------------


class Oracle(LogitsProcessor):
    """M3ID for beams and samples: both branches of each row recomputed from nothing at every call."""

    def __init__(self, zoo, prompts, rate):
        self.zoo, self.rate = zoo, rate
        self.rows = [zoo.make_inputs([prompt]) for prompt in prompts]
        self.length = max(row["input_ids"].shape[1] for row in self.rows)

    def __call__(self, input_ids, scores):
        beams = input_ids.shape[0] // len(self.rows)
        rows = []
        for index, sequence in enumerate(input_ids[:, self.length :].tolist()):
            inputs = self.rows[index // beams]
            ids = inputs["input_ids"][0].tolist()
            text = [token for token in ids if token != self.zoo.image_token_id]
            positive = oracle.next_logits(self.zoo, inputs, ids + sequence)
            negative = oracle.next_logits(self.zoo, {}, text + sequence)
            combine = oracle.formula(math.expm1(self.rate * len(sequence)), 0.1)
            rows.append(combine(positive, negative, 0))
        return torch.stack(rows).log_softmax(-1).masked_fill(torch.isinf(scores), -math.inf)


@pytest.mark.parametrize("extra", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beam_search_equals_branches_recomputed_for_every_beam(llava, inputs, extra):
    settings = {"max_new_tokens": 5, "do_sample": False, **extra}
    with wrap(llava.model, None, "m3id", **STRONG) as guard:
        found = guard.generate(**inputs, **settings)
    processor = LogitsProcessorList([Oracle(llava, PROMPTS, 0.4)])
    assert torch.equal(found, llava.model.generate(**inputs, **settings, logits_processor=processor))


def test_sampling_draws_what_transformers_draws_from_the_same_logits(llava, inputs):
    settings = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 2, "temperature": 1.3, "top_k": 20}
    with wrap(llava.model, None, "m3id", **STRONG) as guard:
        torch.manual_seed(7)
        found = guard.generate(**inputs, **settings)
        torch.manual_seed(7)
        assert torch.equal(found, guard.generate(**inputs, **settings)), "deterministic under a seed"
    torch.manual_seed(7)
    processor = LogitsProcessorList([Oracle(llava, PROMPTS, 0.4)])
    expected = llava.model.generate(**inputs, **settings, logits_processor=processor)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["m3id", "vcd", "softpag", "pai", "dola"])
@pytest.mark.parametrize("extra", [{"cache_implementation": "static"}, {"prefill_chunk_size": 8}, {"use_cache": False}])
def test_other_caches_give_the_same_logits(llava, inputs, method, extra):
    with wrap(llava.model, None, method) as guard:
        first = guard.generate(**inputs, **RECORD, do_sample=False)
        second = guard.generate(**inputs, **RECORD, do_sample=False, **extra)
    assert torch.equal(first.sequences, second.sequences)
    assert oracle.close(torch.stack(first.logits), torch.stack(second.logits))
    assert_pristine(llava.model)


def test_longer_branch_fits_a_static_cache(llava, inputs, zoo_processor):
    processor = zoo_processor("llava")
    with wrap(llava.model, processor, "icd") as guard:
        first = guard.generate(**inputs, max_new_tokens=5, do_sample=False)
        second = guard.generate(**inputs, max_new_tokens=5, do_sample=False, cache_implementation="static")
    assert torch.equal(first, second)


class Collect(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.parts, self.ended = [], False

    def put(self, value):
        self.parts.append(value.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("method", ["m3id", "dola"])
def test_streamer_gets_prompt_then_tokens(llava, method):
    inputs = llava.make_inputs(PROMPTS[:1])
    streamer = Collect()
    with wrap(llava.model, None, method) as guard:
        out = guard.generate(**inputs, max_new_tokens=4, do_sample=False, streamer=streamer)
    assert [token for part in streamer.parts for token in part] == out[0].tolist()
    assert streamer.ended and len(streamer.parts) == 5


def test_recorded_outputs_and_stopping(llava, inputs):
    with wrap(llava.model, None, "m3id") as guard:
        out = guard.generate(**inputs, **RECORD, output_hidden_states=True, do_sample=False)
        stop = int(out.sequences[0, -3])
        ended = guard.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=stop, pad_token_id=0)
    assert len(out.scores) == len(out.logits) == 5 and out.past_key_values is None
    assert [step[-1].shape[:2] for step in out.hidden_states[1:]] == [(2, 1)] * 4
    answer = ended[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer[2] == stop and set(answer[3:]) <= {0}


def test_stop_strings_work_although_transformers_loses_the_tokenizer():
    from vlm_guard import builtin

    model, processor = builtin()
    ids = processor.tokenizer("USER: <image>\nPlease describe the image. ASSISTANT:", return_tensors="pt")["input_ids"]
    ids = ids.repeat_interleave(torch.where(ids[0] == model.config.image_token_id, 256, 1), dim=1)
    side = model.config.vision_config.image_size
    inputs = {"input_ids": ids, "pixel_values": torch.zeros(1, 3, side, side)}
    count = int(model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0].shape[0])
    keep = (ids != model.config.image_token_id) | ((ids == model.config.image_token_id).cumsum(-1) <= count)
    inputs["input_ids"] = ids[:, keep[0]]
    start = inputs["input_ids"].shape[1]
    with wrap(model, processor, "m3id") as guard:
        free = guard.generate(**inputs, max_new_tokens=8, do_sample=False)[0, start:]
        word = processor.tokenizer.decode(free[:3]).split()[-1]
        settings = {"max_new_tokens": 8, "do_sample": False, "stop_strings": [word]}
        cut = guard.generate(**inputs, **settings, tokenizer=processor.tokenizer)[0, start:]
        with pytest.raises(ValueError, match="tokenizer"):
            guard.generate(**inputs, **settings)
    assert len(cut) <= 3 and word in processor.tokenizer.decode(cut)


def test_something_is_left_when_every_plausible_token_is_forbidden(llava, inputs):
    with wrap(llava.model, None, "m3id", plausibility=1.0) as guard:
        free = guard.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1].tolist()
        settings = {"max_new_tokens": 1, "suppress_tokens": [*range(10), *free], "do_sample": True}
        torch.manual_seed(0)
        drawn = guard.generate(**inputs, **settings, temperature=0.1)[:, -1].tolist()
    assert not set(drawn) & set(free)


def test_logits_processors_see_the_combined_logits(llava, inputs):
    class Forbid(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, 77:] = -math.inf
            assert scores.shape[0] == 2
            return scores

    with wrap(llava.model, None, "m3id", plausibility=0.0) as guard:
        out = guard.generate(
            **inputs, max_new_tokens=5, do_sample=False, logits_processor=LogitsProcessorList([Forbid()])
        )
    assert int(out[:, inputs["input_ids"].shape[1] :].max()) < 77


# -- the ecosystem's entry points -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("method", [M3ID(forgetting=0.4), VCD()])
@pytest.mark.parametrize("extra", [{}, {"num_beams": 2}])
def test_callable_and_processor_equal_the_guard(zoo_model, family, method, extra):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPTS)
    settings = {"max_new_tokens": 4, "do_sample": False, **extra}
    with wrap(zoo.model, None, method) as guard:
        expected = guard.generate(**inputs, **settings)
    called = contrast_generate(method, zoo.model, None, inputs)
    assert torch.equal(zoo.model.generate(**inputs, **settings, custom_generate=called), expected)
    if not extra:  # a processor's scores are not normalised again before beams are compared
        processors = LogitsProcessorList([contrast_processor(method, zoo.model, None, inputs)])
        for _ in range(2):  # the same processor serves the same prompts again
            assert torch.equal(zoo.model.generate(**inputs, **settings, logits_processor=processors), expected)
    assert_pristine(zoo.model)


def test_processor_follows_the_beams(llava, inputs):
    class Recomputed(Oracle):
        def __call__(self, input_ids, scores):
            beams = input_ids.shape[0] // len(self.rows)
            rows = []
            for index, sequence in enumerate(input_ids[:, self.length :].tolist()):
                ids = self.rows[index // beams]["input_ids"][0].tolist()
                text = [token for token in ids if token != self.zoo.image_token_id]
                negative = oracle.next_logits(self.zoo, {}, text + sequence)
                rows.append(contrast_logits(scores[index], negative, math.expm1(0.4 * len(sequence)), 0.1))
            return torch.stack(rows)

    settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3}
    ours = LogitsProcessorList([contrast_processor(M3ID(**STRONG), llava.model, None, inputs)])
    theirs = LogitsProcessorList([Recomputed(llava, PROMPTS, 0.4)])
    found = llava.model.generate(**inputs, **settings, logits_processor=ours)
    assert torch.equal(found, llava.model.generate(**inputs, **settings, logits_processor=theirs))


def test_processor_serves_prompt_lookup(llava):
    inputs = llava.make_inputs(PROMPTS[:1])
    method = M3ID(**STRONG)
    plain = LogitsProcessorList([contrast_processor(method, llava.model, None, inputs)])
    expected = llava.model.generate(**inputs, max_new_tokens=6, do_sample=False, logits_processor=plain)
    ahead = LogitsProcessorList([contrast_processor(method, llava.model, None, inputs)])
    found = llava.model.generate(
        **inputs, max_new_tokens=6, do_sample=False, logits_processor=ahead, prompt_lookup_num_tokens=3
    )
    assert torch.equal(found, expected)


def test_entry_points_refuse_what_they_cannot_do(llava, inputs):
    with pytest.raises(ValueError, match="edits attention"):
        contrast_generate(PAI(), llava.model, None, inputs)
    with pytest.raises(ValueError, match="contrasts no logits"):
        contrast_processor(M3ID(forgetting=0.0), llava.model, None, inputs)


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"custom_generate": lambda *a, **k: None}, "custom_generate"),
        ({"prompt_lookup_num_tokens": 2}, "not with assisted_generation"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "guard.trace"),
    ],
)
def test_refused_with_a_reason(llava, extra, match):
    inputs = llava.make_inputs(PROMPTS[:1])
    with wrap(llava.model, None, "m3id") as guard, pytest.raises(ValueError, match=match):
        guard.generate(**inputs, max_new_tokens=2, **extra)
    assert_pristine(llava.model)


def test_a_cache_of_the_caller_is_refused(llava, inputs):
    from transformers import DynamicCache

    with wrap(llava.model, None, "vcd") as guard, pytest.raises(ValueError, match="past_key_values"):
        guard.generate(**inputs, max_new_tokens=2, past_key_values=DynamicCache())


def test_two_contrasts_are_refused_but_a_switched_off_one_is_none(llava):
    with pytest.raises(ValueError, match="several contrasts"):
        wrap(llava.model, None, "vcd+m3id")
    assert_pristine(llava.model)
    wrap(llava.model, None, [VCD(), PAI(guidance=1.0)]).remove()


def test_pixels_must_be_there_to_be_noised(llava, inputs):
    features = llava.model.model.get_image_features(inputs["pixel_values"], return_dict=True)
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with wrap(llava.model, None, "vcd") as guard, pytest.raises(ValueError, match="pixel_values"):
        guard.generate(**given, mm_encoder_outputs={"image": features}, max_new_tokens=2)


# -- the rest -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["vcd", "m3id", "pai", "softpag", "dola"])
def test_neutral_options_are_the_identity(llava, inputs, method):
    plain = llava.model.generate(**inputs, **RECORD, do_sample=False)
    with wrap(llava.model, None, method_class(method).neutral()) as guard:
        guarded = guard.generate(**inputs, **RECORD, do_sample=False)
    assert torch.equal(torch.stack(plain.logits), torch.stack(guarded.logits))


@pytest.mark.parametrize("method", ["vcd", "m3id", "pai", "softpag", "dola"])
def test_half_precision_is_finite(method):
    zoo = build("llava", dtype=torch.bfloat16)
    inputs = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, method, **({"plausibility": 0.0})) as guard:
        out = guard.generate(**inputs, **RECORD, do_sample=False)
    assert torch.isfinite(torch.stack(out.logits)).all()


def test_rows_without_an_image_are_left_alone(llava):
    prompts = [Prompt(text_before=3, images=1, text_after=4, content=0), Prompt(text_before=8, images=0, content=2)]
    inputs = llava.make_inputs(prompts)
    plain = llava.model.generate(**inputs, **RECORD, do_sample=False)
    with wrap(llava.model, None, "m3id", **STRONG) as guard:
        out = guard.generate(**inputs, **RECORD, do_sample=False)
    assert oracle.close(torch.stack(out.logits)[:, 1], torch.stack(plain.logits)[:, 1])
    assert not torch.equal(torch.stack(out.logits)[2:, 0], torch.stack(plain.logits)[2:, 0])


def test_an_exception_leaves_nothing_behind(llava, inputs):
    class Fail(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] > inputs["input_ids"].shape[1] + 1:
                raise RuntimeError("stop here")
            return scores

    with wrap(llava.model, None, "pai") as guard:
        expected = guard.generate(**inputs, max_new_tokens=4, do_sample=False)
        with pytest.raises(RuntimeError, match="stop here"):
            guard.generate(**inputs, max_new_tokens=4, logits_processor=LogitsProcessorList([Fail()]))
        assert guard.reading.current is None
        assert not guard.reading.is_generating
        assert torch.equal(guard.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
    assert_pristine(llava.model)


def test_detached_model_is_as_before(llava, inputs):
    before = llava.model.generate(**inputs, **RECORD, do_sample=False)
    guard = wrap(llava.model, None, "pai")
    guard.generate(**inputs, max_new_tokens=3)
    guard.remove()
    after = llava.model.generate(**inputs, **RECORD, do_sample=False)
    assert torch.equal(torch.stack(before.logits), torch.stack(after.logits))
    assert_pristine(llava.model)


def test_multimodal_positions_are_not_left_for_the_branch(zoo_model):
    zoo = zoo_model("qwen2_5_vl")
    inputs = zoo.make_inputs(PROMPTS)
    zoo.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    expected = zoo.model.model.rope_deltas.clone()
    with wrap(zoo.model, None, "m3id") as guard:
        guard.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(zoo.model.model.rope_deltas, expected)
