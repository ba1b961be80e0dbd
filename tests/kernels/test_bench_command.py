"""`vlm-guard bench`: whole generate calls on the built-in model, and the parts of the GPU check that need no GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from vlm_guard.bench.generate import benchmark_generate, options_by_entry
from vlm_guard.kernels.benchmark import run as benchmark


def test_generate_is_timed_guarded_and_unguarded():
    before, lines = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        options = {"move_fraction": "0.5"}
        result = benchmark_generate(methods=["var"], options=options, new_tokens=3, rounds=3, report=lines.append)
    finally:
        torch.set_num_threads(before)
    unguarded, guarded = result["entries"]
    assert [unguarded["method"], guarded["method"]] == ["none", "var"]
    assert "ratio_to_unguarded" not in unguarded["decode"]
    for phase in ("prefill", "decode"):
        assert guarded[phase]["calls"] == 3
        ratio = guarded[phase]["ratio_to_unguarded"]
        assert 0 < ratio["p20"] <= ratio["median"] <= ratio["p80"]
    assert len(lines) == 2 and result["new_tokens"] == 3
    assert guarded["options"] == {"var.move_fraction": "0.5"} and unguarded["options"] == {}
    assert "load_average_1min" in result["machine"]
    json.dumps(result)


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
        ({"model": "llava"}, "unknown model 'llava'; available: builtin, llava-0.3b"),
        ({"cache": "paged"}, "unknown cache 'paged'"),
        ({"compiled": True}, "--compile needs --cache static"),
        ({"new_tokens": 1}, "at least 2"),
        ({"dtype": "int8"}, "unknown dtype"),
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
    assert len(checked) == 46 and all(result["passed"] for result in checked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_check_says_that_it_needs_a_gpu(tmp_path):
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        benchmark.gpu_check(tmp_path)
