"""Prompts, methods and short recorded generations that the tests of a running guard share."""

import torch
from method_cases import options

from vlm_guard import wrap
from zoo import Prompt

PROMPT = [Prompt(text_before=3, images=1, text_after=6, content=0)]
OTHER = [Prompt(text_before=5, images=1, text_after=3, content=1), Prompt(text_before=2, images=1, content=2)]
TEXT = [Prompt(text_before=9, images=0, content=4)]
ATTENTION = ["var", "act", "zerotuning", "vhr", "gift", "paint", "pai"]
STEPS = 4
RECORD = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": STEPS}


def guarded(zoo, method, **more):
    given = dict(options(method)) | more
    if method == "pai":
        given["guidance"] = 1.0
    return wrap(zoo.model, None, method, **given)


def run(model, inputs, **more):
    out = model.generate(**inputs, **{**RECORD, **more})
    return out.sequences, torch.stack(out.logits)
