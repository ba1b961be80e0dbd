"""What must hold for every method on every architecture of the zoo."""

import warnings
import weakref
from dataclasses import fields

import method_cases
import pytest
import torch
from invariants import close, generate, logits

from vlm_guard import wrap
from vlm_guard.method.hooks import acts_in_model, hooks_of
from vlm_guard.method.registry import method_class, method_names
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine

torch.set_num_threads(1)

# What acts inside the model is seen in one forward pass. What acts on logits, on the inputs of `generate` or on the
# branch of a contrast is seen in what is generated. A method that does both is in both lists.
METHODS = [
    name
    for name in method_cases.names()
    if acts_in_model(method_class(name))
    and method_class(name).edited_branch == "positive"
    and name not in method_cases.SEEN_IN_ANSWERS
]
GENERATING = [
    name
    for name in method_cases.names()
    if method_class(name).edited_branch == "negative"
    or not all(hook.in_model for hook in hooks_of(method_class(name)).values())
]


def cases(methods):
    """The pairs of a family and a method that works on it, and those that it refuses."""
    pairs = [(family, method) for family in method_cases.FAMILIES for method in methods]
    supported = [(family, method) for family, method in pairs if method_cases.supports(method, family)]
    return supported, sorted({*pairs} - {*supported})


SUPPORTED, REFUSED = cases(METHODS)
every_case = pytest.mark.parametrize(("zoo", "method"), SUPPORTED, indirect=["zoo"])
refused_case = pytest.mark.parametrize(("zoo", "method"), REFUSED, indirect=["zoo"])
generating_case = pytest.mark.parametrize(("zoo", "method"), cases(GENERATING)[0], indirect=["zoo"])

PROMPTS = [
    *UNEQUAL_PROMPTS,
    Prompt(text_before=2, images=1, text_after=7, content=3),
]


ANSWER = 5
"""Tokens that an answer has where decoding with a cache is compared with recomputing."""


@pytest.fixture
def zoo(request, zoo_model):
    return zoo_model(request.param)


_KNOWN = weakref.WeakKeyDictionary()


def known_answer(zoo, kind, compute):
    """What `compute()` gives for a model as it was built, unguarded or in a guard of its own; computed once.

    It is asked for before a test wraps the model, and the fixture hands out no model that is not as it was built. What
    the model gives after its guard was removed is always computed anew, and compared with this.
    """
    known = _KNOWN.setdefault(zoo.model, {})
    if kind not in known:
        assert_pristine(zoo.model)
        known[kind] = compute()
    return known[kind]


@every_case
def test_neutral_options_are_the_identity(zoo, method):
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    plain = known_answer(zoo, "logits", lambda: logits(zoo.model, inputs))
    neutral = _neutral_options(method)
    kept = {
        key: value
        for key, value in method_cases.options(method, zoo.family.name).items()
        if key not in _neutral_names(method)
    }
    with wrap(zoo.model, None, method, **(neutral | kept)):
        guarded = logits(zoo.model, inputs)
    real = inputs["attention_mask"].bool()
    assert close(guarded[real], plain[real], plain[real])
    assert_pristine(zoo.model)


def _neutral_options(method):
    """The method's options at their neutral values."""
    neutral = method_class(method).neutral()
    return {item.name: getattr(neutral, item.name) for item in fields(neutral)}


def _neutral_names(method):
    return {item.name for item in fields(method_class(method)) if "neutral" in item.metadata}


@every_case
def test_it_acts_and_leaves_no_trace(zoo, method):
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    plain = known_answer(zoo, "logits", lambda: logits(zoo.model, inputs))
    with wrap(zoo.model, None, method, **method_cases.options(method, zoo.family.name)):
        guarded = logits(zoo.model, inputs)
        assert torch.isfinite(guarded[inputs["attention_mask"].bool()]).all()
        assert not torch.equal(guarded, plain), "the options of this test must make the method act"
    assert torch.equal(logits(zoo.model, inputs), plain)
    assert_pristine(zoo.model)


@every_case
def test_padded_batch_equals_each_prompt_alone(zoo, method):
    if not zoo.family.batch_invariant:
        pytest.skip(f"the stock {zoo.family.name} itself differs: {zoo.family.facts}")
    prompts = zoo.adapt(PROMPTS)
    batch = zoo.make_inputs(prompts)
    with wrap(zoo.model, None, method, **method_cases.options(method, zoo.family.name)):
        together = logits(zoo.model, batch)
        for row, prompt in enumerate(prompts):
            alone = logits(zoo.model, zoo.make_inputs([prompt]))[0]
            real = batch["attention_mask"][row].bool()
            assert close(together[row][real], alone, alone), f"row {row}"


@every_case
def test_cached_decode_equals_full_recompute(zoo, method):
    prompts = zoo.adapt(PROMPTS)
    inputs = zoo.make_inputs(prompts if zoo.family.cache_invariant else prompts[:1])
    with wrap(zoo.model, None, method, **method_cases.options(method, zoo.family.name)):
        cached = generate(zoo.model, inputs, max_new_tokens=ANSWER)
        recomputed = generate(zoo.model, inputs, max_new_tokens=ANSWER, use_cache=False)
    assert len(cached.logits) == ANSWER
    assert torch.equal(cached.sequences, recomputed.sequences)
    if not all(close(first, second, second) for first, second in zip(cached.logits, recomputed.logits)):
        # Running states of linear attention are other sums with a cache than without, also in the plain model. How far
        # these lie apart depends on the processor, so that it is measured here.
        plain = [generate(zoo.model, inputs, max_new_tokens=ANSWER, use_cache=use) for use in (True, False)]
        assert furthest(cached, recomputed) <= 8 * furthest(*plain)
    assert_pristine(zoo.model)


def furthest(first, second):
    """The largest difference of two answers' logits."""
    return max(float((one - other).abs().max()) for one, other in zip(first.logits, second.logits, strict=True))


@refused_case
def test_families_without_what_a_method_needs_are_refused(zoo, method):
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with (
        pytest.raises(ValueError, match=method),
        wrap(zoo.model, None, method, **method_cases.options(method, zoo.family.name)),
    ):
        logits(zoo.model, inputs)
    assert_pristine(zoo.model)


def test_every_method_is_in_the_matrix():
    assert {*METHODS, *GENERATING, "none"} == {*method_names()}


def steps(zoo, inputs, method=None, neutral=False, **extra):
    """Token ids [B, T] and logits [B, T, V] of three greedy steps, plain or with a method."""
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method is None:
            output = zoo.model.generate(**inputs, **settings, **extra)
        else:
            options = method_cases.options(method, zoo.family.name)
            if neutral:
                fixed = {name: value for name, value in options.items() if name not in _neutral_names(method)}
                options = _neutral_options(method) | fixed
            with wrap(zoo.model, method_cases.processor(method, zoo.family.name), method, **options) as guard:
                output = guard.generate(**inputs, **settings, **extra)
    return output.sequences[:, -3:], torch.stack(output.logits, 1)


def guarded_steps(zoo, inputs, method):
    """`steps` of a method for the inputs of `prompts_of`; both tests of a method look at the same."""
    return known_answer(zoo, method, lambda: steps(zoo, inputs, method))


def prompts_of(zoo):
    """Rows of unequal length, or one alone where the stock model cannot keep padded rows apart."""
    prompts = zoo.adapt(PROMPTS)
    return prompts if zoo.family.cache_invariant else prompts[:1]


def near(first, second):
    """As `close`, for logits among which implausible ones are lowered by ten thousand."""
    return close(first, second, second.clamp_min(-1000))


@generating_case
def test_generation_with_neutral_options_is_plain_and_with_others_is_not(zoo, method):
    inputs = zoo.make_inputs(prompts_of(zoo))
    plain = known_answer(zoo, "steps", lambda: steps(zoo, inputs)[1])
    _, neutral = steps(zoo, inputs, method, neutral=True)
    assert near(neutral, plain)
    _, guarded = guarded_steps(zoo, inputs, method)
    assert guarded.isfinite().all() and not near(guarded, plain), "the options of this test must make the method act"
    assert torch.equal(steps(zoo, inputs)[1], plain)
    assert_pristine(zoo.model)


@generating_case
def test_generation_does_not_depend_on_padding_or_the_cache(zoo, method):
    prompts = prompts_of(zoo)
    inputs = zoo.make_inputs(prompts)
    tokens, together = guarded_steps(zoo, inputs, method)
    tokens_anew, anew = steps(zoo, inputs, method, use_cache=False)
    assert torch.equal(tokens, tokens_anew) and near(together, anew)
    if zoo.family.batch_invariant:
        tokens_alone, alone = steps(zoo, zoo.make_inputs(prompts[:1]), method)
        assert torch.equal(tokens[:1], tokens_alone) and near(together[:1], alone)
    assert_pristine(zoo.model)
