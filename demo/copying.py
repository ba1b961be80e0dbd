"""The visitor's setting as Python and as a command, to be copied."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_guard.builtin_model import is_shipped
from vlm_guard.demo.answering import GenerationSettings
from vlm_guard.demo.method_options import changed_options


def as_python(
    model: str, names: Sequence[str], values: Mapping[str, Any], prompt: str, settings: GenerationSettings
) -> str:
    """Code that guards a model with the chosen methods and asks the prompt about `picture.png`.

    Args:
        model: "builtin" or "smol", or the checkpoint's id.
        names: the chosen methods.
        values: what the controls hold.
        prompt: the visitor's prompt.
        settings: how tokens are chosen.
    """
    if is_shipped(model):
        imports = "from vlm_guard.builtin_model import builtin"
        loading = f"model, processor = builtin({'' if model == 'builtin' else repr(model)})"
    else:
        imports = "from transformers import AutoModelForImageTextToText, AutoProcessor"
        loading = (
            f'model = AutoModelForImageTextToText.from_pretrained({model!r}, device_map="auto")\n'
            f"processor = AutoProcessor.from_pretrained({model!r})"
        )
    generate = f"max_new_tokens={settings.max_new_tokens}"
    if settings.temperature > 0:
        generate += f", do_sample=True, temperature={settings.temperature}, top_p=1.0, top_k=0"
    else:
        generate += ", do_sample=False"
    return f"""\
import torch
from PIL import Image
from vlm_guard import wrap
{imports}

{loading}
image = Image.open("picture.png").convert("RGB")
prompt = {prompt!r}
chat = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": prompt}}]}}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(images=image, text=text, return_tensors="pt").to(model.device)

torch.manual_seed({settings.seed})
with wrap(model, processor, {"+".join(names)!r}{_wrap_options(names, values)}) as guard:
    output = guard.generate(**inputs, {generate})
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def _wrap_options(names: Sequence[str], values: Mapping[str, Any]) -> str:
    changed = changed_options(names, values)
    if len(names) == 1:
        return "".join(f", {key.split('.', 1)[1]}={value!r}" for key, value in changed.items())
    return f", **{changed!r}" if changed else ""


def as_command(
    model: str, names: Sequence[str], values: Mapping[str, Any], prompt: str, settings: GenerationSettings
) -> str:
    """The same for a shell; arguments as `as_python`."""
    parts = ["vlm-guard", "generate", "picture.png", prompt, "--model", model]
    parts += ["--method", "none", "--method", "+".join(names)]
    for key, value in changed_options(names, values).items():
        parts += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    parts += ["--max-new-tokens", str(settings.max_new_tokens), "--seed", str(settings.seed)]
    if settings.temperature > 0:
        parts.append("--sample")
    command = " ".join(shlex.quote(part) for part in parts)
    if settings.temperature not in (0, 1):
        command = f"# samples at temperature 1; another temperature is set in Python\n{command}"
    return command
