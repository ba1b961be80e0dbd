"""Ask a model about a picture, plain and guarded.

    python examples/generate.py [PICTURE [MODEL]]

Without arguments, the built-in model looks at one of its drawn scenes. It knows 80 drawn things and nothing else; for
photographs name a model, for example llava-hf/llava-1.5-7b-hf.
"""

import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_guard import builtin, wrap
from vlm_guard.eval.scenes import load_scenes


def main(picture: str | None = None, model_name: str | None = None) -> None:
    """Print the plain and the guarded answer."""
    if model_name is None:
        model, processor = builtin()
    else:
        model = AutoModelForImageTextToText.from_pretrained(model_name, dtype="auto", device_map="auto")
        processor = AutoProcessor.from_pretrained(model_name)
    path = Path(picture) if picture else load_scenes("common", count=8) / "images" / "000000000004.png"

    content = [{"type": "image", "path": str(path)}, {"type": "text", "text": "Please describe this image in detail."}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
    prompt_length = inputs["input_ids"].shape[1]

    for method in ("none", "pai:gain=0.4"):
        with wrap(model, processor, method):  # the model is as before when the block ends
            output = model.generate(**inputs, max_new_tokens=128, do_sample=False)
        print(f"[{method}] {processor.decode(output[0, prompt_length:], skip_special_tokens=True).strip()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
