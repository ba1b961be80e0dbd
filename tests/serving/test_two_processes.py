"""Tensor parallelism: two processes with half of the heads each answer as one does, tables of single heads included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from served_answers import SCORED, assert_same_mentions, grounded_in_transformers

from vlm_guard import builtin, wrap
from vlm_guard.eval.scenes.dataset import write_scenes

pytest.importorskip("vllm", reason="vLLM is not installed; docs/serving.md says how to make an environment with it")

RUN = Path(__file__).with_name("two_processes_run.py")
OFFERS = [
    "pai",
    "m3id",
    "vcd",
    "icd",
    "softpag",
    "softpag:heads=2:0-6,3:1-3,perturbation=identity",
    "act:move_fraction=1,threshold=0.05",
    "act:move_fraction=1,threshold=0.02,heads=3:5-7,4:0-4",
    "zerotuning",
    "zerotuning:factor=0.1,heads=2:6-7,3:0-5",
    "vaf",
    "spin",
    "hgai",
    "ritual",
    "lqcd",
    "var:sink_dimensions=72,sink_threshold=4,min_visual_mass=0,min_content_share=0,move_fraction=1",
    "gift:strength=20,saliency_layer=1",
    "vhr",
]


@pytest.mark.slow
def test_two_processes_answer_as_transformers(tmp_path):
    paths = sorted(write_scenes(tmp_path / "scenes", "common", 3).rglob("*.png"))[:3]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    settings |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(RUN.parent.parent)}
    command = [sys.executable, str(RUN), ";".join(OFFERS), *map(str, paths)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    model, processor = builtin()
    for name in ["none", *OFFERS]:
        guard = None if name == "none" else wrap(model, processor, name)
        answers = []
        for path in paths:
            text = "USER: <image>\nPlease describe this image in detail. ASSISTANT:"
            inputs = processor(images=Image.open(path).convert("RGB"), text=text, return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
            answers.append(output[0, inputs["input_ids"].shape[1] :].tolist())
        if guard is not None:
            guard.remove()
        assert found[name] == answers, name
    asked = [([Image.open(path).convert("RGB")], text) for path, text in zip(paths, SCORED)]
    for mentions, answer in zip(found["mentions"], grounded_in_transformers(asked), strict=True):
        assert_same_mentions(mentions, answer.mentions)
