"""Several pictures in one batch, then one answer word by word while it is made; both guarded.

    python examples/batch_and_stream.py [PICTURE ...]

Without arguments, the built-in model looks at drawn scenes.
"""

import sys
from pathlib import Path

from transformers import TextStreamer

from vlm_guard import builtin, wrap
from vlm_guard.eval.scenes import load_scenes

PROMPTS = ("Please describe this image in detail.", "What is in this picture?", "Is there a dog in the image?")


def conversation(picture: Path, prompt: str) -> list[dict]:
    """One question about one picture, as chat templates want it."""
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


def main(*names: str) -> None:
    """Print the answers of the batch, then stream one."""
    model, processor = builtin()
    pictures = [Path(name) for name in names] or sorted((load_scenes("common", count=8) / "images").glob("*.png"))[:3]
    # The rows of a batch end together, so shorter prompts are filled up on the left.
    processor.tokenizer.padding_side = "left"
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    chats = [conversation(picture, PROMPTS[row % len(PROMPTS)]) for row, picture in enumerate(pictures)]

    with wrap(model, processor, "pai:gain=0.4") as guard:
        inputs = processor.apply_chat_template(chats, processor_kwargs={"padding": True}, **options)
        output = guard.generate(**inputs, max_new_tokens=96, do_sample=False)
        answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for picture, answer in zip(pictures, answers, strict=True):
            print(f"{picture.name}: {answer.strip()}")

        print("\nstreamed:")
        inputs = processor.apply_chat_template(chats[:1], **options)
        streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        guard.generate(**inputs, max_new_tokens=96, do_sample=False, streamer=streamer)


if __name__ == "__main__":
    main(*sys.argv[1:])
