"""Every kind of contrast branch on every architecture, against branches run alone, unpadded and without a cache."""

import contrast_oracle as oracle
import method_cases
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.contrast.output_embeddings import after_output_embeddings
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.method.branch_prompt import image_markers
from vlm_guard.methods.dola import DoLa
from vlm_guard.methods.vcd import VCD
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine
from zoo.prompts import BOS

torch.set_num_threads(1)

PROMPTS = [
    *UNEQUAL_PROMPTS,
    Prompt(text_before=2, images=1, text_after=7, content=3),
]
TOKENS = 4
DISTURBANCE = [151, 152, 153, 154, 155, 156]
RECORD = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}


class WordTokenizer:
    """As much of a tokenizer as the disturbance needs: its words are the ids themselves."""

    all_special_ids = list(range(10))
    bos_token_id = BOS
    pad_token_id = 0

    def encode(self, text, add_special_tokens=True):
        return [int(word) for word in text.split()]

    def decode(self, ids, **settings):
        return " ".join(map(str, ids))


class WordProcessor:
    """A processor around it."""

    tokenizer = WordTokenizer()


@pytest.fixture(params=method_cases.FAMILIES)
def zoo(request, zoo_model):
    return zoo_model(request.param)


def prompts_of(zoo):
    """Rows of unequal length, or one alone where the stock model cannot keep padded rows apart."""
    prompts = zoo.adapt(PROMPTS)
    return prompts if zoo.family.cache_invariant else prompts[:1]


def text_only(zoo, ids):
    removed = {zoo.image_token_id, zoo.video_token_id, *image_markers(zoo.model, None)}
    return [token for token in ids if token not in removed]


def expected(zoo, prompt, method):
    """Positive and negative branch of one row, built here by hand."""
    inputs = zoo.make_inputs([prompt])
    ids = inputs["input_ids"][0].tolist()
    bare = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    if method == "m3id":
        return (inputs, ids), (bare, text_only(zoo, ids)), oracle.formula(lambda step: 2.0**step - 1, 0.1)
    if method == "icd":
        return (inputs, ids), (inputs, [ids[0], *DISTURBANCE, *ids[1:]]), oracle.formula(1.0, 0.1)
    vcd = VCD()
    noised = {name: value for name, value in inputs.items() if "pixel" in name and value.is_floating_point()}
    noised |= {name: value for name, value in inputs.items() if name == "image_patches"}
    noised = {name: vcd._noised(name, value, inputs) for name, value in noised.items()}
    return (inputs, ids), ({**inputs, **noised}, ids), oracle.formula(1.0, 0.1)


def as_without_cache(guard, inputs):
    """Tokens [B, T] and logits [B, T, V] of a cached generation, which one without a cache must equal."""
    out = guard.generate(**inputs, **RECORD, max_new_tokens=TOKENS)
    uncached = guard.generate(**inputs, **RECORD, max_new_tokens=TOKENS, use_cache=False)
    assert torch.equal(out.sequences, uncached.sequences)
    logits = torch.stack(out.logits, 1)
    assert oracle.close(logits, torch.stack(uncached.logits, 1), 2.0)
    return out.sequences[:, -TOKENS:], logits


OPTIONS = {
    "m3id": {"forgetting": 0.6931471805599453, "max_strength": 1e6},
    "icd": {"text": " ".join(map(str, DISTURBANCE)), "place": "start"},
    "vcd": {},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["m3id", "vcd", "icd"])
def test_padded_cached_batch_equals_branches_run_alone(zoo, method):
    prompts = prompts_of(zoo)
    inputs = zoo.make_inputs(prompts)
    with wrap(zoo.model, WordProcessor(), method, **OPTIONS[method]) as guard:
        tokens_of_batch, logits = as_without_cache(guard, inputs)
    if zoo.family.batch_invariant or len(prompts) == 1:
        for row, prompt in enumerate(prompts):
            tokens, rows = oracle.decode(zoo, *expected(zoo, prompt, method), TOKENS)
            assert tokens_of_batch[row].tolist() == tokens, f"row {row}"
            assert oracle.close(logits[row], rows, 4.0), f"row {row}"
    assert_pristine(zoo.model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scope", ["text", "answer"])
def test_perturbed_branch_with_a_shared_beginning_equals_whole_passes(zoo, scope):
    inputs = zoo.make_inputs(prompts_of(zoo))
    layers = [entry.index for entry in describe_architecture(zoo.model).layers]
    options = {"layers": ",".join(map(str, layers)), "scope": scope, "plausibility": 0.0}
    plain = zoo.model.generate(**inputs, **RECORD, max_new_tokens=1)
    with wrap(zoo.model, None, "softpag", **options) as guard:
        _, logits = as_without_cache(guard, inputs)
    assert not oracle.close(logits[:, 0], plain.logits[0]), "the perturbation acts"
    assert_pristine(zoo.model)


@pytest.mark.filterwarnings("ignore")
def test_neutral_queries_in_a_padded_cached_batch_equal_each_prompt_alone(zoo):
    """The leading word of every prompt is its last but one, behind all pictures."""
    prompts = prompts_of(zoo)
    alone = [zoo.make_inputs([prompt]) for prompt in prompts]
    leading = {str(int(inputs["input_ids"][0, -2])) for inputs in alone}

    def neutralise(text):
        return " ".join(word for word in text.split() if word not in leading)

    inputs = zoo.make_inputs(prompts)
    with wrap(zoo.model, WordProcessor(), "lqcd", neutraliser=neutralise) as guard:
        tokens_of_batch, logits = as_without_cache(guard, inputs)
    if zoo.family.batch_invariant or len(prompts) == 1:
        for row, given in enumerate(alone):
            ids = given["input_ids"][0].tolist()
            neutral = [token for token in ids if str(token) not in leading]
            assert len(neutral) < len(ids)
            tokens, rows = oracle.decode(zoo, (given, neutral), (given, ids), oracle.formula(1.0, 0.1), TOKENS)
            assert tokens_of_batch[row].tolist() == tokens, f"row {row}"
            assert oracle.close(logits[row], rows, 4.0), f"row {row}"
    assert_pristine(zoo.model)


def early_logits(zoo, inputs, ids, generated, layers):
    """([V] logits after `ids`, [E, V] of the layers' entering states) from one whole pass of the bare model."""
    entered = {}

    def keep(index):
        return lambda module, args, kwargs: entered.update(
            {index: (args[0] if args else kwargs["hidden_states"])[:, -1]}
        )

    modules = {entry.index: entry.layer for entry in describe_architecture(zoo.model).layers}
    hooks = [modules[index].register_forward_pre_hook(keep(index), with_kwargs=True) for index in layers]
    try:
        final = oracle.next_logits(zoo, inputs, ids, generated)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        early = [zoo.model.get_output_embeddings()(entered[index])[0].float() for index in layers]
        return final, torch.stack([after_output_embeddings(zoo.model)(logits) for logits in early])


@pytest.mark.filterwarnings("ignore")
def test_layers_contrasted_in_a_padded_cached_batch_equal_each_prompt_alone(zoo):
    layers = tuple(entry.index for entry in describe_architecture(zoo.model).layers)[1:]
    method = DoLa(candidates=",".join(map(str, layers)))
    prompts = prompts_of(zoo)
    inputs = zoo.make_inputs(prompts)
    with wrap(zoo.model, None, method) as guard:
        tokens_of_batch, logits = as_without_cache(guard, inputs)
    if zoo.family.batch_invariant or len(prompts) == 1:
        for row, prompt in enumerate(prompts):
            alone = zoo.make_inputs([prompt])
            ids = alone["input_ids"][0].tolist()
            for step, token in enumerate(tokens_of_batch[row].tolist()):
                final, early = early_logits(zoo, alone, ids, step, layers)
                expected = method.combine_layers(final[None], early[:, None], layers)[0]
                assert oracle.close(logits[row, step], expected, 4.0), f"row {row}, step {step}"
                ids.append(token)
    assert_pristine(zoo.model)
