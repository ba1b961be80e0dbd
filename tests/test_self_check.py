"""The check of untested models: what it finds, what it leaves alone, and that it leaves no trace."""

import pytest
import torch
from shrunken_models import build_shrunken, shrink
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlm_guard import self_check, wrap
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.table import CHECKED, model_rows
from vlm_guard.guard import Guard
from zoo import Prompt, build, pristine
from zoo.shapes import text_shape

torch.set_num_threads(1)

CHECKED_TYPES = [
    row["model_type"]
    for row in model_rows()
    if row["status"] == CHECKED and row["model_type"] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
]
FACTOR = {"factor": 0.5}
NO_SECOND_BRANCH = {"exaone4_5": "length of their cache", "hyperclovax_vision_v2": "length of their cache"}
NO_EDITS = {"inkling2": "a sink logit for every row"}


@pytest.fixture(autouse=True)
def _no_verdicts(monkeypatch):
    monkeypatch.setattr(self_check, "_verdicts", {})


@pytest.mark.parametrize(
    "model_type",
    CHECKED_TYPES,
)
def test_what_the_table_says_of_families_that_read_text_alone_here(model_type):
    model = build_shrunken(model_type)
    for method, options, refused in (("zerotuning", FACTOR, NO_EDITS), ("m3id", {}, NO_SECOND_BRANCH)):
        if model_type in refused:
            with pytest.raises(ValueError, match=f"not among the tested families.*{method}.*{refused[model_type]}"):
                wrap(model, None, method, **options)
        else:
            wrap(model, None, method, **options).remove()


def unknown(family: str) -> PreTrainedModel:
    """A model of the zoo under a model type that nobody knows."""
    model = build(family).model
    model.config.model_type = "nobody_knows"
    pristine.record(model)
    return model


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl", "llava_gpt_oss", "gemma4_shared"])
def test_models_that_are_guarded_truly_pass(family):
    model = unknown(family)
    for method in ("pai", "m3id"):
        wrap(model, None, method).remove()
    pristine.assert_pristine(model)


def test_blocks_of_keys_that_padding_shifts_are_found():
    model = unknown("minimax_m3_sparse")
    wrap(model, None, "zerotuning", **FACTOR).remove()
    with pytest.raises(ValueError, match="a second branch that is shorter than the prompt has other logits than alone"):
        wrap(model, None, "m3id")
    pristine.assert_pristine(model)


def test_it_leaves_the_model_its_mode_its_offset_and_the_random_numbers_alone():
    model = unknown("qwen2_5_vl")
    model.train()
    model.model.visual.eval()
    model.model.rope_deltas = torch.tensor([[3]])
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    wrap(model, None, "zerotuning", **FACTOR).remove()
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert model.model.rope_deltas.tolist() == [[3]]


def test_it_runs_once_for_a_configuration_and_never_for_tested_families(monkeypatch):
    calls = []
    kept = self_check._decode
    monkeypatch.setattr(self_check, "_decode", lambda *given: calls.append(given) or kept(*given))
    wrap(build("llava").model, None, "pai").remove()
    assert not calls
    model = unknown("llava")
    wrap(model, None, "none").remove()
    assert not calls, "nothing is edited, so nothing is checked"
    wrap(model, None, "var", sink_dimensions="0").remove()
    assert len(calls) == 2, "plain and edited"
    wrap(model, None, "zerotuning", **FACTOR).remove()
    assert len(calls) == 2
    wrap(model, None, "m3id").remove()
    assert len(calls) == 5, "each row of the branch alone, and both beside the prompt"
    again = unknown("llava")
    wrap(again, None, "pai").remove()
    assert len(calls) == 5
    again.config.text_config.rms_norm_eps *= 2
    wrap(again, None, "zerotuning", **FACTOR).remove()
    assert len(calls) == 7, "another configuration"


def test_attention_that_does_more_than_it_says_is_found(monkeypatch):
    """A model whose own attention adds something that it hands to no attention function's argument."""
    model = unknown("llava_gemma2")
    layer = model.model.language_model.layers[0].self_attn
    monkeypatch.setattr(layer, "attn_logit_softcapping", None)  # The cap is silently lost in what is handed over.
    from transformers.models.gemma2 import modeling_gemma2

    kept = modeling_gemma2.eager_attention_forward

    def capped(module, *args, softcap=None, **kwargs):
        return kept(module, *args, softcap=3.0, **kwargs)

    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", capped)
    with pytest.raises(ValueError, match="edited by nothing gives other logits"):
        wrap(model, None, "zerotuning", **FACTOR)
    wrap(model, None, "m3id").remove()


def test_a_model_that_reads_no_text_alone_is_refused(monkeypatch):
    model = unknown("llava")

    def forward(*args, **kwargs):
        raise KeyError("pixel_values")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ValueError, match=r"does not read a prompt without a picture.*KeyError"):
        wrap(model, None, "zerotuning", **FACTOR)


def test_verdicts_do_not_depend_on_the_type_of_numbers():
    model = build("qwen3_vl", dtype=torch.bfloat16).model
    model.config.model_type = "nobody_knows"
    for method in ("pai", "m3id"):
        wrap(model, None, method).remove()


def test_half_precision_does_not_hide_positions_counted_by_the_cache():
    model = build_shrunken("exaone4_5").to(torch.bfloat16)
    with pytest.raises(ValueError, match="length of their cache"):
        wrap(model, None, "m3id")


def test_the_prompt_holds_ordinary_tokens_only():
    model = build("llava").model
    prompt = self_check._Prompt.of(model)
    assert prompt.input_ids.shape == (2, self_check.LENGTH)
    assert not set(prompt.input_ids.flatten().tolist()) & self_check._special_ids(model)
    rows = list(prompt.without_visual())
    assert [len(row) for row in rows] == [10, 5]


# -- models that cannot be described -----------------------------------------------------------------------------


def test_a_text_model_is_called_one():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**text_shape()))
    with pytest.raises(ValueError, match="it is a text model"):
        wrap(model, None, "none")


def test_a_model_that_reads_images_but_names_no_token_is_not_called_a_text_model():
    model = build("llava").model
    model.config.image_token_index = -1
    with pytest.raises(
        ValueError, match=r"reads images, but its configuration has none of image_token_id.*register"
    ) as e:
        wrap(model, None, "none")
    assert "text model" not in str(e.value)


def test_phi_4_multimodal_is_described_by_the_token_in_its_vision_configuration():
    settings = shrink(Phi4MultimodalConfig().to_dict())
    model = Phi4MultimodalForCausalLM._from_config(Phi4MultimodalConfig.from_dict(settings)).eval()
    architecture = describe_architecture(model)
    assert architecture.visual_token_ids == (9,) and [layer.index for layer in architecture.layers] == [0, 1, 2, 3]
    assert all("Audio" not in type(layer.attention).__name__ for layer in architecture.layers)


def test_layers_of_different_head_counts_are_refused_in_words():
    model = build("gemma4").model

    class PerLayer:
        num_hidden_layers, hidden_size = 4, 64

        @property
        def num_attention_heads(self):
            raise RuntimeError("may vary across layers")

    model.config.get_text_config = lambda decoder: PerLayer()
    with pytest.raises(ValueError, match="no num_attention_heads that holds for every decoder layer"):
        describe_architecture(model)


def test_edits_of_layers_that_choose_their_keys_change_nothing_by_themselves(zoo_model):
    zoo = zoo_model("minimax_m3_sparse")
    inputs = zoo.make_inputs([Prompt(text_before=9, text_after=9)])
    with torch.no_grad():
        plain = zoo.model(**inputs).logits
        with Guard(zoo.model, None, [self_check.UnchangedWeights()]) as guard:
            guard.attach()
            edited = zoo.model(**inputs).logits
    torch.testing.assert_close(edited, plain, atol=1e-4, rtol=1e-4)
