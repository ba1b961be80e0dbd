"""The benchmark measures what it says, and the kernels compile for GPUs that are not there."""

import json
import os

import pytest
import torch

from vlm_guard.kernels.benchmark.measure import quantiles, ratio_quantiles, write_json
from vlm_guard.kernels.benchmark.run import Cell, build_cell, eager_bytes, run_benchmark, traffic
from vlm_guard.kernels.launch_parameters import AttentionSizes, DeviceLimits, choose_launch, power_of_two

H200 = DeviceLimits(multiprocessors=132, shared_memory=227 * 1024, capability=(9, 0))

pytestmark = pytest.mark.usefixtures("one_thread")


def sizes(**given):
    defaults = {"batch": 1, "heads": 32, "groups": 32, "rows": 1, "keys": 2048, "head_dim": 128, "value_dim": 128}
    return AttentionSizes(**(defaults | {"element_bytes": 2, "segmented": True} | given))


def test_quantiles_and_ratios():
    assert quantiles([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])["p20_s"] == 2.0
    assert quantiles([1.0, 2.0, 9.0])["median_s"] == 2.0
    assert ratio_quantiles([2.0, 6.0, 12.0], [1.0, 2.0, 3.0])["median"] == 3.0


def test_write_json_leaves_nothing_else(tmp_path):
    write_json(tmp_path / "new" / "file.json", {"a": 1})
    write_json(tmp_path / "new" / "file.json", {"a": 2})
    assert json.loads((tmp_path / "new" / "file.json").read_text()) == {"a": 2}
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_traffic_of_a_decode_step():
    problem = build_cell(
        Cell(model="Qwen2.5-VL-7B", scenario="decode", batch=1, keys=640), torch.float32, torch.device("cpu")
    )
    moved = traffic(problem)
    assert moved["bytes"] == 4 * (2 * 640 * 4 * 128 + 2 * 28 * 128)
    assert moved["flop"] == 4 * 28 * 640 * 128
    assert eager_bytes(problem) == 28 * 640 * (2 * 4 + 3 * 4)


def test_a_small_run_and_what_it_skips(monkeypatch):
    lines = []
    result = run_benchmark(
        models=["Qwen2.5-VL-7B"],
        keys=[612],
        providers=["sdpa", "torch", "triton"],
        rounds=3,
        seconds=0.1,
        report=lines.append,
    )
    measured = {(entry["scenario"], entry["provider"]): entry for entry in result["entries"]}
    assert set(measured) == {
        (scenario, provider) for scenario in ("decode", "prefill last rows") for provider in ("sdpa", "torch", "triton")
    }
    for (_, provider), entry in measured.items():
        if provider == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
            assert "needs a CUDA device" in entry["skipped"]
        elif provider == "torch":
            assert entry["ratio_to_sdpa"]["p20"] <= entry["ratio_to_sdpa"]["median"]
            assert entry["p20_s"] <= entry["median_s"] <= entry["p80_s"]
    assert len(lines) == 2 and "CPU" in result["notes"][0]
    assert result["ceilings"]["copy_bytes_per_s"] > 0
    json.dumps(result)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"models": ["LLaVA"]}, "unknown model 'LLaVA'; available: LLaVA-1.5-7B"),
        ({"providers": ["cudnn"]}, "unknown provider 'cudnn'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"keys": [100]}, "keys must be more than 611"),
    ],
)
def test_wrong_requests(given, says):
    with pytest.raises(ValueError, match=says):
        run_benchmark(**given)


def test_decode_splits_fill_the_chip():
    launch = choose_launch(sizes(), H200)
    assert launch.decode and launch.block_m == 16
    assert 132 <= 32 * launch.splits <= 2 * 132 + 32
    assert choose_launch(sizes(batch=16), H200).splits == 1
    for keys in (1, 63, 640, 4097, 32768):
        launch = choose_launch(sizes(groups=4, heads=28, keys=keys), H200)
        chunks = -(-keys // launch.block_n)
        assert (launch.splits - 1) * -(-chunks // launch.splits) < chunks, "an empty split"


def test_prefill_tiles():
    full = choose_launch(sizes(rows=1400), H200)
    assert not full.decode and full.splits == 1 and full.warps == 8
    few = choose_launch(sizes(rows=32, heads=8, groups=8), H200)
    assert few.splits > 1 and few.block_m == 32
    assert [power_of_two(number) for number in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
    assert power_of_two(3, at_least=16) == 16


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", ["A100", "H200"])
def test_kernels_compile_without_spilling(name):
    report = pytest.importorskip("vlm_guard.kernels.benchmark.assembler_report")
    device = report.DEVICES[name]
    for rows, block_size, expected in (
        (1, None, {"decode_kernel", "merge_kernel"}),
        (1, 16, {"decode_kernel", "merge_kernel"}),
        (512, None, {"segment_list_kernel", "segmented_prefill_kernel"}),
    ):
        compiled = report.compile_model(device, 28, 4, 128, rows, 2048, segmented=True, block_size=block_size)
        assert {kernel.kernel for kernel in compiled} == expected
        for kernel in compiled:
            assert kernel.stack == kernel.local == 0, kernel
            assert kernel.shared <= device.shared_memory and kernel.registers <= 255


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("rows", "edit", "dtype"), [(3, "everything", torch.float16), (40, "act", torch.float32)])
def test_other_terms_compile(rows, edit, dtype):
    """Bias, gain, masks, soft cap, sink logits, output edit, weights, segments of each head, an odd head dimension."""
    report = pytest.importorskip("vlm_guard.kernels.benchmark.assembler_report")
    from unittest import mock

    from vlm_guard.kernels import triton_backend
    from vlm_guard.kernels.benchmark.cases import Case, build_problem

    case = Case(
        batch=2, heads=4, groups=2, rows=rows, keys=75, head_dim=24, edit=edit, mask="float mask",
        segments="per head", model_terms=edit == "everything",
    )  # fmt: skip
    problem = build_problem(case, dtype, torch.device("cpu"))
    with (
        report.compile_only(report.DEVICES["H200"]) as compiled,
        mock.patch.object(triton_backend, "unsupported_reason", lambda _: None),
    ):
        triton_backend.triton_attention(problem)
    assert len(compiled) >= 2 and all(kernel.registers <= 255 for kernel in compiled)
