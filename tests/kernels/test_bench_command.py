"""`vlm-guard bench`: whole generate calls on the built-in model, and the parts of the GPU check that need no GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from vlm_guard.bench.gate_cost import benchmark_gates
from vlm_guard.bench.generate import NOT_PACKED, benchmark_generate, options_by_entry
from vlm_guard.bench.grounding_cost import benchmark_grounding
from vlm_guard.bench.paired_timing import comes_at_once
from vlm_guard.eval.scenes.dataset import write_scenes
from vlm_guard.kernels.benchmark import linear
from vlm_guard.kernels.benchmark import run as benchmark
from vlm_guard.kernels.benchmark.cases import interpreter_cases
from vlm_guard.kernels.benchmark.measure import note_on_load


def test_generate_is_timed_guarded_and_unguarded():
    before, lines = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        options = {"move_fraction": "0.5"}
        result = benchmark_generate(methods=["var"], options=options, new_tokens=3, rounds=3, report=lines.append)
    finally:
        torch.set_num_threads(before)
    assert [(entry["dtype"], entry["method"], entry.get("control", False)) for entry in result["entries"]] == [
        (dtype, *row)
        for dtype in ("float32", "bfloat16")
        for row in (("none", False), ("plain model, batch 2", True), ("var", False))
    ]
    unguarded, control, guarded = result["entries"][:3]
    assert control["prefill"]["ratio_to_unguarded"]["median"] > 0
    assert lines[0].startswith(result["machine"]["processor"])
    assert "ratio_to_unguarded" not in unguarded["decode"]
    for phase in ("prefill", "decode"):
        assert guarded[phase]["calls"] == 3
        ratio = guarded[phase]["ratio_to_unguarded"]
        assert 0 < ratio["p20"] <= ratio["median"] <= ratio["p80"]
    assert sum("decode" in line for line in lines) == 6 and result["new_tokens"] == 3
    assert guarded["options"] == {"var.move_fraction": "0.5"} and unguarded["options"] == {}
    assert "load_average_1min" in result["machine"]
    json.dumps(result)


def test_grounding_is_timed_beside_plain_calls():
    result = benchmark_grounding(new_tokens=3, rounds=3, dtype="float32", report=lambda line: None)
    ratios = result["ratios"]
    assert list(ratios) == ["lens_first_token", "lens_prefill", "lens_token", "self_check"]
    assert all(0 < found["p20"] <= found["median"] <= found["p80"] for found in ratios.values())
    assert result["visual_tokens"] == 64 and "--rounds 3" in result["command"]


def test_gates_are_timed_and_say_how_often_they_open(tmp_path):
    folder = write_scenes(tmp_path / "s", "common", 4)
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.png"))]
    settings = {"dtype": "float32", "new_tokens": 12, "report": lambda line: None}
    method = "vcd:strength=0.5,plausibility=0.7,noise_step=999"
    result = benchmark_gates(pictures=pictures, method=method, gates=["rival>=0.7", "max_p<0.01"], **settings)
    always, exact, closed = result["gates"]
    assert [entry["gate"] for entry in result["gates"]] == ["", "rival>=0.7", "max_p<0.01"]
    assert always["open_steps"] == 1 and 0 < exact["open_steps"] < 1 and closed["open_steps"] == 0
    assert exact["answers_as_always"] == always["answers_as_always"] == closed["answers_as_plain"] == 1
    assert result["pictures"] == 3 and json.dumps(result)
    for entry in result["gates"]:
        assert all(0 < found["p20"] <= found["median"] <= found["p80"] for found in entry["ratios"].values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "llava-0.3b"}, "needs a model that describes pictures"),
        ({"pictures": [None] * 2}, "at least 3 pictures"),
        ({"new_tokens": 2}, "at least 3 to leave out the longest, given 2"),
        ({"method": "vcd+pai"}, "one method and no gate with it"),
        ({"method": "vcd:gate=entropy>1"}, "one method and no gate with it"),
        ({"gates": []}, "needs a gate"),
        ({"gates": ["", "entropy>1"]}, "a gate is empty"),
        ({"gates": ["entropy<1"]}, "cannot read the gate"),
        ({"method": "carve"}, "carve"),
        ({"dtype": "int8"}, "unknown dtype"),
    ],
)
def test_what_cannot_be_timed_of_gates_is_said_before_a_model_is_loaded(given, said, monkeypatch):
    monkeypatch.setattr("vlm_guard.bench.gate_cost.builtin", None)
    settings = {"pictures": [None] * 3, "method": "vcd", "gates": ["entropy>1"], "report": lambda line: None}
    with pytest.raises(ValueError, match=said):
        benchmark_gates(**{**settings, **given})


def test_a_search_is_timed_as_a_whole_answer():
    result = benchmark_generate(methods=["opera"], dtype="float32", new_tokens=3, rounds=3, report=lambda line: None)
    opera = result["entries"][-1]
    assert comes_at_once(opera) and opera["answer"]["ratio_to_unguarded"]["median"] > 0
    assert not any(comes_at_once(entry) for entry in result["entries"][:-1])


def test_packed_weights_are_recorded_and_refused_where_they_do_nothing():
    lines = []
    quick = {"dtype": "float32", "new_tokens": 3, "rounds": 3, "report": lines.append}
    result = benchmark_generate(methods=["zerotuning"], pack_weights=True, **quick)
    names = [entry["method"] for entry in result["entries"]]
    assert result["packed_weights"] is True and names[2:] == [NOT_PACKED, "zerotuning"]
    assert result["entries"][2]["control"]
    assert sum(line.startswith("float32: ") and "layers packed" in line for line in lines) == 1
    with pytest.raises(ValueError, match="does nothing for compiled steps"):
        benchmark_generate(methods=["zerotuning"], pack_weights=True, compiled=True, cache="static", **quick)


def test_a_loaded_machine_is_said(monkeypatch):
    assert note_on_load({"load_average_1min": 1.0, "logical_processors": 2}) == ""
    assert "load average 8.0 on 2" in note_on_load({"load_average_1min": 8.0, "logical_processors": 2})
    assert note_on_load({"load_average_1min": None}) == ""


def test_few_rows_of_a_product_are_timed_and_equal(monkeypatch):
    monkeypatch.setattr(linear, "SHAPES", ((96, 64),))
    result = linear.benchmark_linear(rounds=3, report=lambda line: None)
    assert [entry["rows"] for entry in result["entries"]] == [1, 2, 3, 4]
    assert all(entry["bfloat16"]["ratio_to_float32"]["median"] > 0 for entry in result["entries"])
    found = {name: call().float() for name, call in linear.products(96, 64, 2).items()}
    assert all(torch.allclose(value, found["float32"], atol=0.5) for value in found.values())


def test_options_go_to_every_entry_with_their_method():
    given = options_by_entry(["var", "var+vcd"], {"var.move_fraction": "0.5", "vcd.strength": "2"})
    assert given == {
        "var": {"var.move_fraction": "0.5"},
        "var+vcd": {"var.move_fraction": "0.5", "vcd.strength": "2"},
    }
    with pytest.raises(ValueError, match=r"write METHOD.OPTION, for example 'var.strength'"):
        options_by_entry(["var", "vcd"], {"strength": "2"})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "llava"}, "unknown model 'llava'; available: builtin, smol, llava-0.3b"),
        ({"cache": "paged"}, "unknown cache 'paged'"),
        ({"compiled": True}, "--compile needs --cache static"),
        ({"new_tokens": 1}, "at least 2"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"dtype": "float32,int8"}, "unknown dtype 'int8'"),
        ({"options": {"vcd.strength": 1}}, "'vcd.strength' fits no method of this benchmark .var."),
    ],
)
def test_wrong_requests(given, says):
    with pytest.raises(ValueError, match=says):
        benchmark_generate(**given)


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom vlm_guard.cli import main\n"
        "try:\n    main(['bench', '--help'])\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "kernels|generate" in done.stdout and done.stdout.rstrip().endswith("False"), done.stdout + done.stderr


def test_cases_are_checked_in_processes(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    checked = benchmark.check_in_parallel(300, backend="torch", cases="interpreter", device="cpu")
    assert len(checked) == len(interpreter_cases()) and all(result["passed"] for result in checked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_check_says_that_it_needs_a_gpu(tmp_path):
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        benchmark.gpu_check(tmp_path)
