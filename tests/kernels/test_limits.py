"""Limits of the fused kernels, and compiled steps: one graph, no recompilation while a sequence grows."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention

triton_backend = pytest.importorskip("vlm_guard.kernels.triton_backend")


def problem(dtype=torch.float32, head_dim=32, value_dim=32, rows=1, keys=9):
    return AttentionProblem(
        query=torch.ones(1, 2, rows, head_dim, dtype=dtype),
        key=torch.ones(1, 2, keys, head_dim, dtype=dtype),
        value=torch.ones(1, 2, keys, value_dim, dtype=dtype),
        edit=AttentionEdit(),
        scaling=1.0,
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (problem(torch.float64), "must share float16, bfloat16 or float32"),
        (problem(head_dim=8), "head dimension is 8; supported are 16 to 256"),
        (problem(head_dim=257), "head dimension is 257"),
        (problem(value_dim=512), "value dimension is 512"),
        (problem(keys=0), "0 keys"),
    ],
)
def test_problems_outside_the_limits(given, says):
    assert says in triton_backend.unsupported_reason(given)
    with pytest.raises(ValueError, match="use attention_backend='torch'"):
        edited_attention(given, "triton")


@pytest.mark.skipif(triton_backend.INTERPRETED, reason="the interpreter runs on the CPU")
def test_a_cpu_problem_is_refused_without_the_interpreter():
    assert "needs a CUDA device" in triton_backend.unsupported_reason(problem())


def test_an_old_triton_is_refused(monkeypatch):
    monkeypatch.setattr(triton_backend, "TRITON_VERSION", (3, 6))
    assert "3.7 or later is needed" in triton_backend.unsupported_reason(problem())


def test_gradients_are_refused(monkeypatch):
    monkeypatch.setattr(triton_backend, "INTERPRETED", True)
    wanted = problem()
    wanted = replace(wanted, query=wanted.query.requires_grad_())
    assert "gradients" in triton_backend.unsupported_reason(wanted)
    with torch.no_grad():
        assert triton_backend.unsupported_reason(wanted) is None


COMPILED_STEPS = """
import sys, torch
from vlm_guard.kernels.attention_edit import AttentionEdit, Segments
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention
from vlm_guard.kernels.policies import MoveSinksToContent
from vlm_guard.kernels.benchmark.cases import KeepHalf

torch.manual_seed(0)
backend = sys.argv[1]
segments = Segments(torch.randint(0, 4, (2, 20)).to(torch.uint8))
policies = [
    MoveSinksToContent(move_fraction=0.6, min_content_share=0.2, min_visual_mass=0.1),
    KeepHalf(),
]

def check(dynamic):
    for policy in policies:
        def step(query, key, value, mask):
            edit = AttentionEdit(segments=segments, policy=policy, head_scale=torch.full((1, 4), 0.5))
            problem = AttentionProblem(query=query * 2, key=key, value=value, edit=edit, scaling=0.2, mask=mask)
            result = edited_attention(problem, backend)
            return result.output + 1, result.masses

        # Like a guarded model, which has computed its prompt, uncompiled, before any compiled step.
        prompt = torch.randn(2, 4, 1, 32), torch.randn(2, 2, 25, 32), torch.randn(2, 2, 25, 32)
        step(*prompt, torch.ones(1, 1, 1, 25, dtype=torch.bool))
        torch._dynamo.reset()
        graphs = []
        def count(graph, inputs):
            graphs.append(graph)
            return graph.forward
        compiled = torch.compile(step, fullgraph=True, backend=count, dynamic=True if dynamic else None)
        with torch.no_grad():
            for length in range(26, 30):
                keys = length if dynamic else 32
                query, key, value = torch.randn(2, 4, 1, 32), torch.randn(2, 2, keys, 32), torch.randn(2, 2, keys, 32)
                mask = (torch.arange(keys) < length)[None, None, None]
                for given, wanted in zip(compiled(query, key, value, mask), step(query, key, value, mask)):
                    torch.testing.assert_close(given, wanted)
        assert len(graphs) == 1, f"{len(graphs)} graphs for {type(policy).__name__}"

for cache in sys.argv[2:]:
    try:
        check(cache == "growing")
        print(f"{cache}: one graph each")
    except Exception as error:
        print(f"{cache}: {error!r}")
"""


@pytest.fixture(scope="module")
def compiled_steps():
    """`compiled_steps("triton")`: what a process says of each cache; both of Triton's are tried in one."""
    known = {}

    def ask(backend):
        if backend not in known:
            interpreter = {"TRITON_INTERPRET": "1"} if backend == "triton" else {}
            caches = ["static", "growing"] if backend == "triton" else ["static"]
            command = [sys.executable, "-W", "ignore", "-c", COMPILED_STEPS, backend, *caches]
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | interpreter
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr[-3000:]
            known[backend] = done.stdout
        return known[backend]

    return ask


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "cache"), [("torch", "static"), ("triton", "static"), ("triton", "growing")])
def test_compiled_decode_steps_are_one_graph(compiled_steps, backend, cache):
    assert f"{cache}: one graph each" in compiled_steps(backend)
