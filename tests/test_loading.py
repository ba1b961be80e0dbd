"""Models as people load them: half precision, offloaded layers, tensor parallelism, 8-bit weights."""

import contextlib
import copy
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import accelerate
import method_cases
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.contrast import layer_contrast
from vlm_guard.families.architecture import inference_device
from vlm_guard.methods.var.sink_look import look_at_prompts
from zoo import Prompt, assert_pristine, build

torch.set_num_threads(1)

PROMPTS = [
    Prompt(text_before=3, images=1, text_after=4, content=0),
    Prompt(text_before=9, images=2, text_after=6, content=1),
]


def options_of(method):
    # Its default layers are a share of the depth that three layers do not have.
    return {"layers": "1-2"} if method == "carve" else method_cases.options(method)


def answer(model, processor, inputs, method, steps=4, **settings):
    with wrap(model, processor, method, **options_of(method)), torch.no_grad():
        out = model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
    return out.sequences, torch.stack(out.logits)


# -- half precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["var", "zerotuning", "vhr", "pai", "vcd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_single_precision(dtype, method):
    """The same rounded weights, computed with in both: what differs is the rounding of activations."""
    half = build("llava", dtype=dtype)
    single = copy.deepcopy(half.model).float()
    inputs = half.make_inputs(PROMPTS)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    options = options_of(method) | ({"plausibility": 0.0} if method in ("pai", "vcd") else {})
    settings = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        plain = (half.model(**inputs).logits.float() - single(**wide).logits).abs().max()
        with wrap(half.model, None, method, **options), wrap(single, None, method, **options):
            found, expected = half.model.generate(**inputs, **settings), single.generate(**wide, **settings)
    found, expected = found.logits[0].float(), expected.logits[0]
    assert torch.isfinite(found).all()
    assert float((found - expected).abs().max()) <= 4 * float(plain)
    assert_pristine(half.model)


# -- offloaded layers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["memory", "disk"])
def offloaded(request, tmp_path_factory):
    """A tiny LLaVA whose weights are all elsewhere and on the meta device between calls, and the same as it is."""
    zoo = build("llava")
    model = copy.deepcopy(zoo.model)
    with contextlib.redirect_stdout(io.StringIO()):
        if request.param == "memory":
            accelerate.cpu_offload(model, execution_device="cpu")
        else:
            parts = {name: "disk" for name, _ in model.named_children()}
            folder = tmp_path_factory.mktemp("offload")
            accelerate.dispatch_model(model, parts, main_device="cpu", offload_dir=folder, force_hooks=True)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    return zoo, model


# ReVisiT reads single rows of the output embeddings, which lie elsewhere between calls.
@pytest.mark.parametrize("method", [name for name in method_cases.names() if name != "revisit"])
def test_offloaded_layers_give_the_same_answer(offloaded, zoo_processor, method, monkeypatch):
    # A product with the weights on its left is made with output embeddings that lie here, and rounds otherwise.
    monkeypatch.setattr(layer_contrast, "_WEIGHTS_LEFT", range(0))
    zoo, model = offloaded
    inputs, processor = zoo.make_inputs(PROMPTS), zoo_processor("llava")
    expected = answer(zoo.model, processor, inputs, method)
    found = answer(model, processor, inputs, method)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_revisit_says_that_it_reads_no_offloaded_output_embeddings(offloaded):
    _, model = offloaded
    with pytest.raises(ValueError, match=r"revisit reads single tokens.*load it without quantising or offloading them"):
        wrap(model, None, "revisit")


def test_offloaded_models_are_calibrated_and_fed_where_they_run(offloaded):
    zoo, model = offloaded
    inputs = zoo.make_inputs(PROMPTS)
    assert inference_device(model).type == "cpu"
    guarded = look_at_prompts([inputs], partial(wrap, model, None))
    for mine, theirs in zip(guarded, look_at_prompts([inputs], partial(wrap, zoo.model, None)), strict=True):
        assert mine.layer == theirs.layer and torch.equal(mine.drawn, theirs.drawn)


# -- tensor parallelism ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_that_share_the_heads_give_the_answer_of_one(tmp_path):
    """Every method, chosen heads included, and the trace: see tests/tensor_parallel_run.py."""
    program = Path(__file__).parent / "tensor_parallel_run.py"
    run = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads((tmp_path / "differences.json").read_text(encoding="utf-8"))
    assert report["heads"] == 2, "each process has half of the four heads"
    refused = report["refused"]
    assert set(method_cases.names()) - set(refused) < set(report["differences"])
    assert set(refused) == {"only", "revisit"} and all("without tp_plan" in reason for reason in refused.values())
    # Implausible tokens are lowered by 10,000, where float32 has steps of 0.001.
    assert {case: value for case, value in report["differences"].items() if value > 2e-3} == {}


# -- 8-bit weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["var", "vhr", "zerotuning", "m3id", "vcd", "dola"])
def test_eight_bit_weights(tmp_path, method):
    """The first token is the same with and without a cache, and so are the others where no branches are contrasted.

    Nothing more can be asked: 8-bit products treat columns with outliers apart, and which columns these are depends on
    the rows that are computed together. So the plain model's logits differ with and without a cache, too, and a
    difference of branches enlarges that.
    """
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    zoo = build("llava")
    zoo.model.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_8bit=True)
    model = type(zoo.model).from_pretrained(tmp_path, quantization_config=settings, device_map={"": "cpu"}).eval()
    model.generation_config = zoo.model.generation_config
    assert type(model.model.language_model.layers[0].self_attn.q_proj).__name__ == "Linear8bitLt"
    inputs = zoo.make_inputs(PROMPTS)
    plain = answer(model, None, inputs, "none")
    cached, recomputed = answer(model, None, inputs, method), answer(model, None, inputs, method, use_cache=False)
    assert torch.equal(cached[1][0], recomputed[1][0])
    if method not in ("m3id", "vcd", "dola"):
        assert torch.equal(cached[0], recomputed[0])
    assert not torch.equal(cached[1][1:], plain[1][1:]), "it acts"
    assert torch.equal(answer(model, None, inputs, "none")[1], plain[1])
