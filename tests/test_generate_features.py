"""Guarded attention under the ways `generate` can run: each must give what plain cached decoding gives."""

import contextlib

import method_cases
import pytest
import torch

from vlm_guard import wrap
from zoo import Prompt, assert_pristine, build

torch.set_num_threads(1)
VAR_OPTIONS = method_cases.options("var")
PROMPTS = [
    Prompt(text_before=3, images=1, text_after=4, content=0),
    Prompt(text_before=9, images=1, text_after=6, content=1),
]


def run(model, inputs, **settings):
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=6,
            min_new_tokens=6,
            output_logits=True,
            return_dict_in_generate=True,
            **({"do_sample": False} | settings),
        )
    return output.sequences, torch.stack(output.logits)


@pytest.fixture(params=["llava", "gemma3", "qwen2_5_vl"])
def zoo(request, zoo_model):
    model = zoo_model(request.param)
    yield model
    assert_pristine(model.model)


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 8},
        {"prefill_chunk_size": 8, "cache_implementation": "static", "disable_compile": True},
    ],
    ids=["static cache", "chunked prefill", "chunked prefill into a static cache"],
)
def test_equals_plain_cached_decoding(zoo, settings):
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    if not torch.allclose(run(zoo.model, inputs)[1], run(zoo.model, inputs, **settings)[1], atol=2e-4):
        pytest.skip(f"the stock {zoo.family.name} itself answers differently this way")
    with wrap(zoo.model, None, "var", **VAR_OPTIONS):
        expected = run(zoo.model, inputs)
        actual = run(zoo.model, inputs, **settings)
    assert torch.equal(actual[0], expected[0])
    assert torch.allclose(actual[1], expected[1], atol=2e-4)


# Why a method may refuse a prompt that is read in pieces: it must see all of it at once, or reads it beforehand.
IN_PIECES_REFUSED = {"avisc", "gift", "sid", "vhr", "vista"}


@pytest.mark.parametrize("method", method_cases.names())
def test_a_prompt_read_in_pieces_gives_every_method_the_same_answer_or_is_refused(method, zoo_model):
    """Three pieces, the first of which ends in the picture: keys that a method has described are not all there yet."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    options = method_cases.options(method)
    with wrap(zoo.model, method_cases.processor(method, "llava"), method, **options):
        expected = run(zoo.model, inputs)
        if method in IN_PIECES_REFUSED:
            with pytest.raises(ValueError, match="prefill_chunk_size"):
                run(zoo.model, inputs, prefill_chunk_size=8)
            return
        actual = run(zoo.model, inputs, prefill_chunk_size=8)
    assert torch.equal(actual[0], expected[0])
    assert torch.allclose(actual[1], expected[1], atol=2e-4)


def test_beam_search_scores_are_those_of_the_guarded_model(zoo):
    """The score of the winning beam equals its log-probability in one guarded pass over prompt and answer."""
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS[:1]))
    length = inputs["input_ids"].shape[1]
    settings = {"num_beams": 3, "length_penalty": 0.0, "return_dict_in_generate": True, "output_scores": True}
    with wrap(zoo.model, None, "var", **VAR_OPTIONS) as guard, torch.no_grad():
        beams = guard.generate(**inputs, max_new_tokens=4, min_new_tokens=4, **settings)
        forced = guard.generate(
            **inputs,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            prefix_allowed_tokens_fn=lambda row, ids: [int(beams.sequences[0, len(ids)])],
        )
    chosen = beams.sequences[0, length:]
    expected = torch.stack(forced.logits)[:, 0].log_softmax(-1).gather(1, chosen[:, None]).sum()
    assert torch.allclose(beams.sequences_scores[0], expected, atol=1e-3)


def test_several_sequences_per_prompt_match_the_prompt_alone(zoo):
    """Every returned sequence is what its prompt gives when its tokens are forced: rows are not mixed up."""
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with wrap(zoo.model, None, "var", **VAR_OPTIONS):
        torch.manual_seed(0)
        sequences, logits = run(zoo.model, inputs, do_sample=True, num_return_sequences=3)
        first_step = run(zoo.model, inputs)[1][0]
    assert sequences.shape[0] == 6
    assert torch.allclose(logits[0], first_step.repeat_interleave(3, 0), atol=2e-4)


def drafted(zoo, inputs, **settings):
    """The answer with drafted tokens; skips where the stock model itself answers differently with them."""
    plain = run(zoo.model, inputs)[0]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False} | settings
    with torch.no_grad():
        if not torch.equal(zoo.model.generate(**inputs, **settings), plain):
            pytest.skip(f"the stock {zoo.family.name} itself answers differently this way")
        with wrap(zoo.model, None, "var", **VAR_OPTIONS) as guard:
            expected = run(zoo.model, inputs)[0]
            found = zoo.model.generate(**inputs, **settings)
            assert guard.state.prompt_length == inputs["input_ids"].shape[1]
    return found, expected


def test_prompt_lookup_decoding(zoo):
    found, expected = drafted(zoo, zoo.make_inputs(PROMPTS[:1]), prompt_lookup_num_tokens=3)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("assistant", ["another model", "another guarded model", "the model itself"])
def test_assisted_decoding(zoo, assistant):
    """Drafted tokens are checked by the guarded model, several in one pass, whoever drafts them."""
    other = zoo.model if assistant == "the model itself" else build(zoo.family.name, seed=1).model
    with contextlib.ExitStack() as guards:
        if assistant == "another guarded model":
            guards.enter_context(wrap(other, None, "zerotuning", factor=0.3))
        found, expected = drafted(zoo, zoo.make_inputs(PROMPTS[:1]), assistant_model=other)
    assert torch.equal(found, expected)


def test_custom_generate_callable_runs_guarded(zoo):
    def own_loop(model, input_ids, **given):
        return type(model)._sample(model, input_ids, **given)

    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with wrap(zoo.model, None, "var", **VAR_OPTIONS):
        expected, found = run(zoo.model, inputs), run(zoo.model, inputs, custom_generate=own_loop)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
