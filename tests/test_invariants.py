"""What must hold for every method on every architecture of the zoo."""

import method_cases
import pytest
import torch
from invariants import close, generate, logits

from vlm_guard import wrap
from vlm_guard.method.hooks import acts_in_model
from vlm_guard.method.registry import method_class
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine

torch.set_num_threads(1)

METHODS = [
    name
    for name in method_cases.names()
    if acts_in_model(method_class(name))
    # Methods that edit a contrast branch only act inside generate: tests/test_contrast.py, tests/methods.
    if method_class(name).edited_branch == "positive"
]

PAIRS = [(family, method) for family in method_cases.FAMILIES for method in METHODS]
SUPPORTED = [(family, method) for family, method in PAIRS if method_cases.supports(method, family)]
every_case = pytest.mark.parametrize(("zoo", "method"), SUPPORTED, indirect=["zoo"])
refused_case = pytest.mark.parametrize(("zoo", "method"), sorted({*PAIRS} - {*SUPPORTED}), indirect=["zoo"])

PROMPTS = [
    *UNEQUAL_PROMPTS,
    Prompt(text_before=2, images=1, text_after=7, content=3),
]


@pytest.fixture
def zoo(request, zoo_model):
    return zoo_model(request.param)


@every_case
def test_neutral_options_are_the_identity(zoo, method):
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    plain = logits(zoo.model, inputs)
    neutral = method_class(method).neutral().describe()["options"]
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


def _neutral_names(method):
    from dataclasses import fields

    return {item.name for item in fields(method_class(method)) if "neutral" in item.metadata}


@every_case
def test_it_acts_and_leaves_no_trace(zoo, method):
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    plain = logits(zoo.model, inputs)
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
        cached = generate(zoo.model, inputs)
        recomputed = generate(zoo.model, inputs, use_cache=False)
    assert torch.equal(cached.sequences, recomputed.sequences)
    for first, second in zip(cached.logits, recomputed.logits):
        assert close(first, second, second)
    assert_pristine(zoo.model)


@refused_case
def test_families_without_what_a_method_needs_are_refused(zoo, method):
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with (
        pytest.raises(ValueError, match=method),
        wrap(zoo.model, None, method, **method_cases.options(method, zoo.family.name)),
    ):
        logits(zoo.model, inputs)
    assert_pristine(zoo.model)
