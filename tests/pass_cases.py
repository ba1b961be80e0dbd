"""Prompts, methods and ways to run them, for the tests of which pass a guard acts on."""

import torch
from method_cases import options

from vlm_guard import wrap
from zoo import Prompt

PROMPT = [Prompt(text_before=3, images=1, text_after=6, content=0)]
OTHER = [Prompt(text_before=5, images=1, text_after=3, content=1), Prompt(text_before=2, images=1, content=2)]
TEXT = [Prompt(text_before=9, images=0, content=4)]
ATTENTION = ["var", "act", "zerotuning", "vhr", "gift", "paint", "pai"]
CONTRAST = ["vcd", "m3id", "dola"]
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


def own_loop(model, inputs, answer):
    """Logits of decoding the `answer` [B, STEPS] token by token over `model(...)`."""
    ids, mask, rest = inputs["input_ids"], inputs["attention_mask"], dict(inputs)
    del rest["input_ids"], rest["attention_mask"]
    out = model(input_ids=ids, attention_mask=mask, **rest, use_cache=True)
    logits = [out.logits[:, -1]]
    for step in range(STEPS - 1):
        token = answer[:, step : step + 1]
        mask = torch.cat((mask, torch.ones_like(token)), 1)
        # Families with multimodal positions take none from a mask, so without padding none is given.
        given = {} if bool(mask.all()) else {"attention_mask": mask}
        out = model(input_ids=token, **given, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[:, -1])
    return torch.stack(logits)
