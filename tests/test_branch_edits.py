"""Contrast beside attention edits: which rows of a joint pass belong to which branch, and what is read once."""

import math
import warnings

import contrast_oracle as oracle
import method_cases
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from vlm_guard import wrap
from vlm_guard.method.branch_prompt import image_markers
from vlm_guard.method.registry import method_class
from vlm_guard.methods.lqcd.method import LQCD
from vlm_guard.methods.m3id import M3ID
from vlm_guard.methods.softpag import SoftPAG
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine
from zoo.prompts import BOS, IMAGE

torch.set_num_threads(1)

PROMPTS = list(UNEQUAL_PROMPTS)
RECORD = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 5}


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


@pytest.fixture
def inputs(llava):
    return llava.make_inputs(PROMPTS)


def branch_logits(model, inputs, tokens, method, processor=None, **options):
    """[B, V] logits of each step when `tokens` are forced, of a model guarded without contrast."""

    class Force(LogitsProcessor):
        def __call__(self, input_ids, scores):
            step = input_ids.shape[1] - inputs["input_ids"].shape[1]
            forced = torch.full_like(scores, -math.inf)
            return forced.scatter(1, tokens[:, step : step + 1], 0.0)

    with wrap(model, processor, method, **options) as guard, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = guard.generate(
            **inputs, **RECORD, do_sample=False, logits_processor=LogitsProcessorList([Force()]), suppress_tokens=None
        )
    return torch.stack(out.logits, 1)


def record_branches(monkeypatch, method_class):
    """The logits that reach `combine_logits`, step by step."""
    seen = []
    combine = method_class.combine_logits

    def spy(self, positive, negative, step):
        seen.append((positive, negative))
        return combine(self, positive, negative, step)

    monkeypatch.setattr(method_class, "combine_logits", spy)
    return seen


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl", "cohere2_vision"])
def test_attention_edits_stay_in_the_positive_rows(zoo_model, monkeypatch, family, use_cache):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPTS)
    seen = record_branches(monkeypatch, M3ID)
    edit = {"zerotuning.factor": 0.3}
    with wrap(zoo.model, None, "zerotuning+m3id", **edit) as guard:
        out = guard.generate(**inputs, **RECORD, do_sample=False, use_cache=use_cache)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    positive, negative = (torch.stack(part, 1) for part in zip(*seen))
    assert oracle.close(positive, branch_logits(zoo.model, inputs, tokens, "zerotuning", factor=0.3))
    markers = {zoo.image_token_id}
    for row, prompt in enumerate(PROMPTS):
        ids = zoo.make_inputs([prompt])["input_ids"][0].tolist()
        removed = markers | {zoo.video_token_id} | set(image_markers(zoo.model, None))
        text = [token for token in ids if token not in removed]
        for step in range(5):
            alone = oracle.next_logits(zoo, {}, text + tokens[row, :step].tolist())
            assert oracle.close(negative[row, step], alone), f"row {row} step {step}"
    assert_pristine(zoo.model)


COMBINED = [
    name
    for name in method_cases.names()
    if name != "none"
    and method_cases.supports(name, "llava")
    and not method_class(name)().contrasts()
    and "inputs" not in method_class(name).stations  # these need the pictures: their own tests combine them
]


@pytest.mark.parametrize("name", COMBINED)
def test_every_other_method_combines_and_keeps_to_the_positive_rows(llava, zoo_processor, monkeypatch, inputs, name):
    options = method_cases.options(name)
    processor = zoo_processor("llava")
    seen = record_branches(monkeypatch, M3ID)
    with wrap(
        llava.model, processor, f"{name}+m3id", **{f"{name}.{key}": value for key, value in options.items()}
    ) as guard:
        out = guard.generate(**inputs, **RECORD, do_sample=False)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    positive, negative = (torch.stack(part, 1) for part in zip(*seen))
    expected = branch_logits(llava.model, inputs, tokens, name, processor, **options)
    assert oracle.close(positive, expected), "the positive branch is what the method gives alone"
    for row, prompt in enumerate(PROMPTS):
        ids = llava.make_inputs([prompt])["input_ids"][0].tolist()
        text = [token for token in ids if token != llava.image_token_id]
        for step in range(5):
            alone = oracle.next_logits(llava, {}, text + tokens[row, :step].tolist())
            assert oracle.close(negative[row, step], alone), f"row {row} step {step}"
    assert_pristine(llava.model)


@pytest.mark.parametrize("use_cache", [True, False])
def test_perturbation_stays_in_the_negative_rows(llava, inputs, monkeypatch, use_cache):
    seen = record_branches(monkeypatch, SoftPAG)
    options = {"layers": "all", "scope": "text"}
    with wrap(llava.model, None, "softpag", **options) as guard:
        out = guard.generate(**inputs, **RECORD, do_sample=False, use_cache=use_cache)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    positive, negative = (torch.stack(part, 1) for part in zip(*seen))
    assert oracle.close(positive, branch_logits(llava.model, inputs, tokens, "none"))
    perturbed = type("Perturbed", (SoftPAG,), {"edited_branch": "positive", "contrasts": lambda self: False})
    assert oracle.close(negative, branch_logits(llava.model, inputs, tokens, perturbed(**options)))


def test_the_picture_is_read_once_where_branches_begin_alike(llava, zoo_processor):
    def read_lengths(method, inputs):
        lengths = []
        hook = llava.model.register_forward_pre_hook(
            lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        try:
            with wrap(llava.model, zoo_processor("llava"), method) as guard:
                guard.generate(**inputs, max_new_tokens=2, do_sample=False)
        finally:
            hook.remove()
        return lengths

    one = llava.make_inputs([Prompt(text_before=3, text_after=5)])
    assert read_lengths("softpag", one) == [25, 5, 1], "a perturbed branch reads the text behind the picture"
    tokenizer = zoo_processor("llava").tokenizer
    words = tokenizer.encode("is this red ? yes it is . ASSISTANT :", add_special_tokens=False)
    ids = torch.tensor([[BOS, *[IMAGE] * 16, *words]])
    leading = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": one["pixel_values"]}
    method = LQCD(neutraliser=lambda text: text.replace("yes it is . ", ""))
    assert read_lengths(method, leading) == [27, 2, 1], "and a neutral query what differs"
    assert read_lengths("vcd", one) == [25, 25, 1]


def test_trace_sees_the_positive_branch(llava):
    inputs = llava.make_inputs(PROMPTS[:1])
    with wrap(llava.model, None, "m3id") as guard, guard.trace() as trace:
        guard.generate(**inputs, max_new_tokens=3, do_sample=False)
        visual = guard.state.visual
    shares = trace.visual_share(visual)
    assert shares.shape[:1] == (3,) and shares.shape[2] == 1
    assert bool((shares > 0).all())
