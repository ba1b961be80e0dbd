"""Packed weights: the same products within an error budget against float64, and what puts them off."""

import copy
import json

import pytest
import torch
from torch import nn

import vlm_guard
import vlm_guard.kernels.packed_linear as packed_linear
from vlm_guard.bench.random_prompts import noise_pictures
from vlm_guard.cli import main
from vlm_guard.eval.run.models import load_model
from vlm_guard.kernels.benchmark.linear import speed_up
from vlm_guard.kernels.packed_linear import PackedForward, pack_linear_layers, packable_types

TYPES = packable_types()
pytestmark = pytest.mark.skipif(not TYPES, reason="this torch was built without oneDNN")


def layer_of(dtype, outputs=40, inputs=96, bias=True):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (2, 1), (1, 3), (20,), (2, 33), (300,)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_products_stay_within_the_error_budget(dtype, shape, bias):
    layer = layer_of(dtype, bias=bias)
    given = torch.randn(*shape, 96, dtype=dtype)
    exact = nn.functional.linear(
        given.double(), layer.weight.double(), layer.bias.double() if layer.bias is not None else None
    )
    # n products summed in float32 in any order, then one rounding to the type.
    magnitude = nn.functional.linear(given.double().abs(), layer.weight.double().abs())
    if bias:
        magnitude = magnitude + layer.bias.double().abs()
    budget = 98 * torch.finfo(torch.float32).eps * magnitude + torch.finfo(dtype).eps * exact.abs()
    found = PackedForward(layer)(given)
    assert found.shape == exact.shape and found.dtype == dtype
    assert bool(((found.double() - exact).abs() <= budget).all())


@pytest.fixture
def torchs_own(monkeypatch):
    """How often a layer computed as torch does."""
    calls = []
    own = packed_linear.linear
    monkeypatch.setattr(packed_linear, "linear", lambda *given: (calls.append(given), own(*given))[1])
    return calls


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_packed_weights_are_used(dtype, bias, torchs_own):
    forward = PackedForward(layer_of(dtype, bias=bias))
    for rows in (1, 2, 300):
        forward(torch.randn(rows, 96, dtype=dtype))
    assert torchs_own == []


def test_what_does_not_fit_is_left_to_torch(torchs_own):
    forward = PackedForward(layer_of(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert forward(torch.randn(2, 96)).dtype == torch.bfloat16
    assert forward(torch.randn(2, 96, requires_grad=True)).requires_grad
    assert forward(torch.zeros(0, 96)).shape == (0, 40)
    with pytest.raises(RuntimeError):
        forward(torch.zeros(1, 96, dtype=torch.float64))
    with torch.inference_mode():
        forward.layer.weight = nn.Parameter(torch.ones(40, 96), requires_grad=False)
        forward(torch.randn(2, 96))
    assert len(torchs_own) == 5


def test_a_hand_computed_product():
    layer = nn.Linear(3, 2).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]]))
    layer.bias.copy_(torch.tensor([10.0, 0.0]))
    assert PackedForward(layer)(torch.tensor([[1.0, 0.0, 2.0]])).tolist() == [[17.0, 1.0]]


def test_weights_written_to_or_replaced_are_packed_again():
    layer = layer_of(torch.float32, bias=False)
    packed = pack_linear_layers(nn.Sequential(layer))
    given = torch.randn(2, 96)
    with torch.no_grad():
        layer.weight.mul_(3)
        assert torch.allclose(layer(given), given @ layer.weight.T, atol=1e-5)
        layer.weight = nn.Parameter(torch.ones(40, 96))
        assert torch.allclose(layer(given), given.sum(-1, keepdim=True).expand(2, 40), atol=1e-4)
    packed.remove()
    assert "forward" not in vars(layer)


def test_a_copy_packs_its_own_weights_and_another_type_is_left_to_torch():
    model = nn.Sequential(layer_of(torch.float32, bias=False)).eval()
    packed = pack_linear_layers(model)
    copied, given = copy.deepcopy(model), torch.randn(2, 96)
    with torch.no_grad():
        copied[0].weight.mul_(2)
        assert torch.allclose(copied(given), 2 * model(given), atol=1e-5)
        assert vars(copied[0])["forward"].layer is copied[0]
        model.half()
        assert model(given.half()).dtype == torch.float16
        if torch.bfloat16 in TYPES:
            assert model.to(torch.bfloat16)(given.bfloat16()).dtype == torch.bfloat16
    packed.remove()
    assert "forward" in vars(copied[0]) and "forward" not in vars(model[0])


def test_with_gradients_the_layer_computes_as_torch_does():
    layer = nn.Linear(96, 40)
    given = torch.randn(2, 96)
    expected = layer(given)
    pack_linear_layers(layer)
    found = layer(given)
    assert torch.equal(found, expected) and found.requires_grad
    found.sum().backward()
    assert layer.weight.grad is not None


def test_other_layers_stay_as_they_are():
    class Own(nn.Linear):
        pass

    replaced, double = layer_of(torch.float32), layer_of(torch.float64)
    replaced.forward = lambda input: input
    model = nn.ModuleList([layer_of(torch.float32), Own(96, 40), replaced, double])
    packed = pack_linear_layers(model)
    assert [forward.layer for forward in packed.forwards] == [model[0]]
    assert packed.memory == 40 * 96 * 4 and packed.seconds >= 0
    with pytest.raises(ValueError, match="this model has float64 on cpu"):
        pack_linear_layers(nn.Sequential(layer_of(torch.float64)))
    with pytest.raises(ValueError, match="has layers with a forward of their own"):
        pack_linear_layers(nn.Sequential(replaced))
    with pytest.raises(ValueError, match="has packed weights already"):
        pack_linear_layers(nn.Sequential(model[0]))
    with pytest.raises(ValueError, match="float32 on cpu without values"):
        pack_linear_layers(nn.Linear(3, 0))
    with torch.inference_mode():
        inferred = nn.Sequential(nn.Linear(96, 40))
    with pytest.raises(ValueError, match="made in inference mode"):
        pack_linear_layers(inferred)
    with pytest.raises(ValueError, match="no linear layer"):
        pack_linear_layers(nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_adapters_are_left_alone():
    """PEFT adds to the weights of what it wraps by their `.data`, which nobody can notice."""

    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer, self.lora_A = layer_of(torch.float32), layer_of(torch.float32)

    model = nn.ModuleList([Adapter(), layer_of(torch.float32)])
    assert [forward.layer for forward in pack_linear_layers(model).forwards] == [model[1]]
    with pytest.raises(ValueError, match="this model has adapters"):
        pack_linear_layers(Adapter())


def test_a_class_of_tensors_that_computes_by_itself_is_left_alone():
    class Quantised(torch.Tensor):
        pass

    layer = layer_of(torch.float32)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised), requires_grad=False)
    with pytest.raises(ValueError, match="of the class Quantised"):
        pack_linear_layers(layer)


def test_packed_weights_are_put_off_and_on_and_made_anew(torchs_own):
    layer = layer_of(torch.float32, bias=False)
    packed = pack_linear_layers(layer)
    packed.remove()
    assert "forward" not in vars(layer)
    packed.put_back()
    layer.weight.data.mul_(2)
    packed.repack()
    given = torch.randn(2, 96)
    assert torch.allclose(layer(given), given @ layer.weight.T, atol=1e-5) and torchs_own == []


def test_a_forward_replaced_since_is_left_alone():
    layer = layer_of(torch.float32)
    packed = pack_linear_layers(layer)
    layer.forward = other = lambda input: input
    packed.remove()
    assert vars(layer)["forward"] is other


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_speed_up_is_a_ratio(dtype):
    assert speed_up(dtype, 1, outputs=64, inputs=64, calls=3) > 0


def test_types_that_cannot_be_packed_are_refused():
    with pytest.raises(ValueError, match="cannot be packed"):
        speed_up(torch.float16, 1)


def logits_of(method, dtype=torch.float32, **how):
    loaded = load_model("builtin", device="cpu", **how)
    model = loaded.model.to(dtype)
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
    text = loaded.processor.apply_chat_template(message, add_generation_prompt=True)
    inputs = loaded.processor(images=noise_pictures(2, 224, 0), text=[text] * 2, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with vlm_guard.wrap(model, loaded.processor, method), torch.no_grad():
        return model(**inputs).logits[:, -1].double(), loaded


@pytest.mark.parametrize("method", ["none", "pai", "vcd"])
def test_a_guarded_model_with_packed_weights_is_as_exact_as_without(method):
    exact, _ = logits_of(method, torch.float64)
    plain, loaded = logits_of(method)
    found, with_packed = logits_of(method, pack_weights=True)
    assert with_packed.identity == loaded.identity | {"packed_weights": True}
    assert isinstance(vars(with_packed.model.lm_head)["forward"], PackedForward)
    # The same roundings in another order: as far from the truth as torch's own, give or take their luck.
    assert float((found - exact).abs().max()) <= 4 * float((plain - exact).abs().max())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dtype", "float16"], "weights are packed for the CPU, in float32"),
        (["--dtype", "float64"], "dtype is 'float64'"),
        (["--device", "meta"], "device 'meta' has shapes and no values"),
    ],
)
def test_the_command_refuses_what_cannot_be_packed(capsys, tmp_path, arguments, says):
    noise_pictures(1, 32, 0)[0].save(tmp_path / "noise.png")
    with pytest.raises(SystemExit) as finished:
        main(["generate", str(tmp_path / "noise.png"), "--pack-weights", "--device", "cpu", *arguments])
    assert finished.value.code == 2 and says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("other", [["--endpoint", "http://localhost:1/v1"], ["--engine", "vllm"]], ids=str)
def test_other_engines_refuse_the_option(capsys, tmp_path, other):
    with pytest.raises(SystemExit) as finished:
        main(["eval", "--count", "1", "--pack-weights", *other, "--out", str(tmp_path / "out")])
    assert finished.value.code == 2 and "--pack-weights cannot be used" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--device", "cuda"], "--pack-weights is for the CPU, and --device is cuda"),
        (["--dtype", "float16"], "--pack-weights is for float32 and bfloat16"),
    ],
)
def test_an_evaluation_refuses_before_a_model_is_loaded(capsys, tmp_path, given, says):
    assert run(main, ["eval", "--count", "1", "--pack-weights", *given, "--out", str(tmp_path / "out")]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_an_evaluation_records_packed_weights_and_mixes_no_answers(capsys, tmp_path):
    line = ["eval", "--count", "2", "--task", "chair", "--method", "none", "--max-new-tokens", "8", "--device", "cpu"]
    out = ["--out", str(tmp_path / "out")]
    assert run(main, [*line, "--pack-weights", *out]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["model"]["packed_weights"] is True
    assert run(main, [*line, *out]) == 2
    assert "packed_weights" in capsys.readouterr().err


def run(command, arguments):
    with pytest.raises(SystemExit) as finished:
        command(arguments)
    return finished.value.code
