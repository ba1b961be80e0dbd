"""Answers of an engine of vLLM whose heads two processes share. Run by test_two_processes.py:

python two_processes_run.py OFFERS PICTURE...          prints {offer: [token ids of each picture]} in its last line

Under "mentions" stand those of a fixed answer about each picture, as JSON can hold them.
"""

import json
import sys

from PIL import Image
from served_answers import SCORED, conversation
from vllm import LLM, SamplingParams

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.serving.vllm import engine_options, ground
from vlm_guard.serving.vllm.declaration import Declaration

PROMPT = "USER: <image>\nPlease describe this image in detail. ASSISTANT:"

if __name__ == "__main__":
    methods, *paths = sys.argv[1:]
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 16, "block_size": 32}
    llm = LLM(
        str(BUILTIN_DIR), tensor_parallel_size=2, **options | engine_options(methods, grounding="lens,self_check")
    )
    names = ["none", *Declaration.read(methods).offers]
    jobs = [(name, path) for name in names for path in paths]
    prompts = [{"prompt": PROMPT, "multi_modal_data": {"image": Image.open(path).convert("RGB")}} for _, path in jobs]
    params = [SamplingParams(temperature=0, max_tokens=40, extra_args={"vlm_guard": name}) for name, _ in jobs]
    found: dict[str, list] = {}
    for (name, _), output in zip(jobs, llm.generate(prompts, params, use_tqdm=False)):
        found.setdefault(name, []).append(list(output.outputs[0].token_ids))
    shown = [[Image.open(path).convert("RGB")] for path in paths]
    scored = ground(llm, [conversation(images, text) for images, text in zip(shown, SCORED)])
    found["mentions"] = [[mention.to_dict() for mention in answer.mentions] for answer in scored]
    print(json.dumps(found), flush=True)
