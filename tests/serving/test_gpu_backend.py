"""vLLM's attention for GPUs with guards inside, run on the CPU by Triton's interpreter.

What it cannot show is that Triton compiles the kernels for a GPU, and how long they take there; the first is looked at
without one by tests of the kernels.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from served_answers import (
    SCORED,
    InTransformers,
    assert_same,
    assert_same_mentions,
    grounded_in_transformers,
    lens_profiles,
)

from vlm_guard.eval.scenes.dataset import write_scenes

pytest.importorskip("vllm", reason="vLLM is not installed; docs/serving.md says how to make an environment with it")

RUN = Path(__file__).with_name("gpu_backend_run.py")
NEW_TOKENS = 5
VAR = "var:sink_dimensions=72,sink_threshold=4,min_visual_mass=0,min_content_share=0,move_fraction=1"
OFFERS = [
    "pai",
    "act:move_fraction=1,threshold=0.05",
    "zerotuning:factor=0.1",
    "spin",
    "hgai",
    "m3id",
    "lqcd",
    VAR,
    "gift:strength=20,saliency_layer=1",
    "vhr",
]


@pytest.fixture(scope="module", autouse=True)
def _profiles(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_GUARD_PROFILES", lens_profiles(tmp_path_factory.mktemp("profiles")))
        yield


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return sorted(write_scenes(tmp_path_factory.mktemp("scenes") / "s", "common", 2).rglob("*.png"))[:2]


@pytest.fixture(scope="module")
def transformers(paths):
    return InTransformers([Image.open(path).convert("RGB") for path in paths], NEW_TOKENS)


def answers_of(runner, offers, paths, drawn=(), **options):
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(RUN.parent.parent)}
    command = [sys.executable, str(RUN), runner, ";".join(offers), json.dumps(options), ";".join(drawn)]
    command += map(str, paths)
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def assert_as_in_transformers(found, transformers, offers, pictures):
    for offer in ["none", *offers]:
        for answer, (ids, steps) in zip(transformers.answers(offer)[:pictures], found[offer], strict=True):
            assert_same(answer, ids, [{int(token): kept for token, kept in step.items()} for step in steps])
    asked = [([picture], text) for picture, text in zip(transformers.pictures[:pictures], SCORED)]
    for mentions, answer in zip(found["mentions"], grounded_in_transformers(asked), strict=True):
        assert_same_mentions(mentions, answer.mentions)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["0", "1"], ids=["first runner", "second runner"])
def test_methods_answer_as_in_transformers(paths, transformers, runner):
    found = answers_of(runner, OFFERS, paths[:1])
    assert_as_in_transformers(found, transformers, OFFERS, 1)


@pytest.mark.slow
def test_the_second_runner_with_prompts_in_pieces_and_little_room(paths, transformers):
    offers = ["pai:gain=0.5,guidance=1", "m3id", VAR]
    # Room for about two pairs: plain requests are taken off and come again, with what was found in their prompts.
    tight = {"max_num_batched_tokens": 48, "num_gpu_blocks_override": 18}
    found = answers_of("1", offers, paths, ["none", "m3id"], **tight)
    assert_as_in_transformers(found, transformers, offers, 2)
    for name in ("none drawn", "m3id drawn"):
        first, again = found[name]
        assert first[0] == again[0], "the same seed, the same answer"
