"""IRI by hand, its hooks on the last rows, and causal tracing."""

import pytest
import torch

from vlm_guard import builtin, wrap
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.layer_parts import attending_parts
from vlm_guard.families.profiles import Fact, Profile
from vlm_guard.methods.iri.causal_tracing import calibrate_iri, causal_tracing, yes_tokens
from vlm_guard.methods.iri.method import Injection, inject
from zoo import UNEQUAL_PROMPTS, Prompt, tiny_processor

torch.set_num_threads(1)
PROMPTS = [
    *UNEQUAL_PROMPTS,
    Prompt(text_before=2, images=0, text_after=8, content=2),
]
OPTIONS = {"attention_rates": "0.9,0.2,0.5", "mlp_rates": "0.1,0.8,0.3", "sources": 2, "targets": 2}
STRONG = OPTIONS | {"attention_strength": 1.5, "mlp_strength": 0.8}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_sources_and_targets_are_the_best_layers():
    plan = Injection.of(0.3, dict(enumerate((0.1, 0.9, -0.2, 0.5))), sources=1, targets=3)
    assert plan.sources == {1: 0.9} and plan.targets == {1, 3, 0}


def test_injection_by_hand():
    # a = (3, 4), source (0, 5) at rate 0.5, lambda 2: (3, 4 + 5) has norm sqrt(90); back to norm 5.
    plan = Injection(2.0, {0: 0.5, 4: 9.0}, frozenset({2}))
    seen = {}
    assert inject(plan, 0, torch.tensor([[[0.0, 5.0]]]), seen) is None
    found = inject(plan, 2, torch.tensor([[[3.0, 4.0]]]), seen)
    assert torch.allclose(found, torch.tensor([[[3.0, 9.0]]]) * 5 / 90**0.5)
    assert set(seen) == {0}, "a source above the target takes no part"


def test_a_source_is_remembered_as_it_was():
    plan = Injection(1.0, {0: 1.0, 1: 1.0}, frozenset({1, 2}))
    seen = {}
    rows = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 1.0]]])]
    for layer, item in enumerate(rows):
        found = inject(plan, layer, item, seen)
    assert torch.equal(seen[1], rows[1])
    assert torch.allclose(found, torch.tensor([[[2.0, 2.0]]]) / 2), "(1, 1) + (1, 0) + (0, 1), at norm sqrt 2"


def test_zero_rows_stay_zero():
    plan = Injection(1.0, {0: 1.0}, frozenset({1}))
    found = inject(plan, 1, torch.zeros(1, 1, 4), {0: torch.ones(1, 1, 4)})
    assert torch.equal(found, torch.zeros(1, 1, 4))


def test_it_equals_the_formula_written_into_the_layers(zoo_model):
    """Against sub-layers patched by hand: last row only, rows with an image only, both kinds."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    plain = logits(zoo.model, inputs)
    layers = zoo.model.get_decoder().layers
    kept = {}

    def patch(kind, layer, rates, strength):
        order = sorted(range(3), key=lambda index: -rates[index])[:2]

        def hook(module, args, output):
            first = output[0] if isinstance(output, tuple) else output
            kept[kind, layer] = first[:2, -1].clone()
            total = sum(rates[k] * kept[kind, k] for k in order if k < layer)
            if layer not in order or isinstance(total, int):
                return output
            new = first.clone()
            row = first[:2, -1] + strength * total
            new[:2, -1] = row * first[:2, -1].norm(dim=-1, keepdim=True) / row.norm(dim=-1, keepdim=True)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    hooks = []
    for layer, module in enumerate(layers):
        hooks.append(module.self_attn.register_forward_hook(patch("attention", layer, (0.9, 0.2, 0.5), 1.5)))
        hooks.append(module.mlp.register_forward_hook(patch("mlp", layer, (0.1, 0.8, 0.3), 0.8)))
    expected = logits(zoo.model, inputs)
    for hook in hooks:
        hook.remove()
    with wrap(zoo.model, None, "iri", **STRONG):
        found = logits(zoo.model, inputs)
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], expected[real], atol=1e-5)
    assert not torch.allclose(plain[:2, -1], expected[:2, -1], atol=1e-3)
    assert torch.equal(found[2], plain[2]) and torch.equal(found[:, :-1][real[:, :-1]], plain[:, :-1][real[:, :-1]])


def test_norms_are_kept_while_decoding(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:2])
    module = zoo.model.get_decoder().layers[2].self_attn
    before, after = [], []
    with wrap(zoo.model, None, "iri", **STRONG) as guard:
        first = module.register_forward_hook(lambda m, a, output: before.append(output[0][:, -1].clone()), prepend=True)
        last = module.register_forward_hook(lambda m, a, output: after.append(output[0][:, -1].clone()))
        guard.generate(**inputs, max_new_tokens=4, do_sample=False)
        first.remove()
        last.remove()
    assert len(before) == 4
    for old, new in zip(before, after):
        assert torch.allclose(old.norm(dim=-1), new.norm(dim=-1), rtol=1e-5) and not torch.allclose(old, new, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "glm4v", "llama4", "llava_gpt_oss"])
def test_sublayers_are_what_the_residual_stream_gets(zoo_model, family):
    """hidden after = hidden before + attention + feed-forward, with the modules that were found."""
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS[:1]))
    architecture = describe_architecture(zoo.model)
    entry = architecture.layers[0]
    seen, hooks = {}, []
    for item in attending_parts(architecture, "iri")[:2]:

        def keep(module, args, output, kind=item.part):
            seen[kind] = output[0] if isinstance(output, tuple) else output

        hooks.append(item.module.register_forward_hook(keep))

    def whole(module, args, kwargs, output):
        seen["before"] = args[0] if args else kwargs["hidden_states"]
        seen["after"] = output[0] if isinstance(output, tuple) else output

    hooks.append(entry.layer.register_forward_hook(whole, with_kwargs=True))
    logits(zoo.model, inputs)
    for hook in hooks:
        hook.remove()
    total = seen["before"] + seen["attention"] + seen["mlp"].view(seen["before"].shape)
    assert torch.allclose(total, seen["after"], atol=1e-5)


def test_refusals(zoo_model):
    zoo = zoo_model("llava")
    with pytest.raises(ValueError, match="calibrate"):
        wrap(zoo.model, None, "iri")
    with pytest.raises(ValueError, match="3 layers"):
        wrap(zoo.model, None, "iri", attention_rates="1,2", mlp_rates="1,2,3")
    with pytest.raises(ValueError, match="numbers"):
        wrap(zoo.model, None, "iri", attention_rates="a,b,c", mlp_rates="1,2,3")


@pytest.fixture(scope="module")
def tiny():
    return builtin()


def samples(processor, count):
    from PIL import Image, ImageDraw

    found = []
    for index in range(count):
        picture = Image.new("RGB", (96, 96), (190, 210, 230))
        ImageDraw.Draw(picture).ellipse((20 + 3 * index, 30, 60 + 3 * index, 70), fill=(210, 40, 40))
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        found.append(dict(processor(text=text, images=[picture], return_tensors="pt")))
    return found


@pytest.mark.parametrize("tokens", ["last", "visual", "text"])
def test_recovery_rates_against_runs_by_hand(zoo_model, tokens):
    """One sample of a tiny model: patch each layer's output with plain hooks and compare."""
    zoo = zoo_model("llava")
    sample = zoo.make_inputs(PROMPTS[:1])
    processor = tiny_processor()
    yes = list(yes_tokens(processor.tokenizer))
    rates = causal_tracing(
        zoo.model, processor, [sample], components=("attention", "mlp", "hidden"), tokens=tokens, noise=2.0, min_drop=-9
    )
    noise = torch.randn(sample["pixel_values"].shape, generator=torch.Generator().manual_seed(0))
    noised = sample | {"pixel_values": sample["pixel_values"] + 2.0 * noise}
    visual = (sample["input_ids"][0] == zoo.image_token_id).nonzero().flatten()
    length = sample["input_ids"].shape[1]
    places = {"last": [length - 1], "visual": visual, "text": list(range(int(visual[-1]) + 1, length))}[tokens]

    def probability(inputs):
        return float(logits(zoo.model, inputs)[0, -1].softmax(-1)[yes].sum())

    clean, corrupted = probability(sample), probability(noised)
    for layer, module in enumerate(zoo.model.get_decoder().layers):
        for kind, part in (("attention", module.self_attn), ("mlp", module.mlp), ("hidden", module)):
            kept = []
            hook = part.register_forward_hook(
                lambda m, a, output, kept=kept: kept.append(output[0] if isinstance(output, tuple) else output)
            )
            logits(zoo.model, sample)
            hook.remove()

            def put_back(module, args, output, kept=kept):
                new = (output[0] if isinstance(output, tuple) else output).clone()
                new[0, places] = kept[0][0, places]
                return (new, *output[1:]) if isinstance(output, tuple) else new

            hook = part.register_forward_hook(put_back)
            patched = probability(noised)
            hook.remove()
            expected = (patched - corrupted) / (clean - corrupted)
            assert getattr(rates, kind)[layer] == pytest.approx(expected, abs=1e-3)
    assert rates.clean == pytest.approx(clean, abs=1e-6) and rates.samples == 1


def test_everything_comes_back_with_the_last_hidden_state(zoo_model):
    """The claim behind the rates: restoring the last layer's output at the last token restores the answer."""
    zoo = zoo_model("llava")
    sample = zoo.make_inputs(PROMPTS[:1])
    rates = causal_tracing(zoo.model, tiny_processor(), [sample], components=("hidden",), min_drop=-9)
    assert rates.hidden[-1] == pytest.approx(1.0, abs=1e-3) and rates.attention == (0.0, 0.0, 0.0)


def test_samples_the_noise_does_not_change_are_left_out(tiny):
    model, processor = tiny
    with pytest.raises(ValueError, match="none of 1 samples"):
        causal_tracing(model, processor, samples(processor, 1), noise=0.0)
    with pytest.raises(ValueError, match="pixel"):
        text = processor(text="USER: hello ASSISTANT:", return_tensors="pt")
        causal_tracing(model, processor, [dict(text)])
    with pytest.raises(ValueError, match="components"):
        causal_tracing(model, processor, samples(processor, 1), components=("heads",))


def test_a_calibrated_profile_is_used(tiny):
    model, processor = tiny
    finished = []
    facts = calibrate_iri(
        model,
        processor,
        samples(processor, 2),
        min_drop=-1.0,
        progress=lambda done, total: finished.append((done, total)),
    )
    assert finished == [(1, 2), (2, 2)]
    depth = model.config.text_config.num_hidden_layers
    assert all(isinstance(fact, Fact) and len(fact.value) == depth for fact in facts.values())
    profile = Profile(name="tiny", match={}, facts=facts)
    with wrap(model, processor, "iri", profile=profile) as guard:
        plan = guard.methods[0].prepared
    rates = facts["iri_attention_recovery"].value
    assert set(plan["attention"].sources) == set(sorted(range(depth), key=lambda layer: -rates[layer])[:3])
