"""How sure is the model of what it mentions? Scores of the built-in model's answer to a picture, and its repair.

    python examples/score_mentions.py [PICTURE]

For a model of your own: `wrap(model, processor, "none")`, and leave `find` out to have all nouns scored.
"""

import sys

from PIL import Image

from vlm_guard import builtin, wrap
from vlm_guard.eval.scenes import load_scenes
from vlm_guard.eval.tasks.grounding.finders import coco_mentions
from vlm_guard.grounding import Grounding


def main(path: str) -> None:
    """Answer, score, repair."""
    model, processor = builtin()
    content = [{"type": "image"}, {"type": "text", "text": "Please describe this image in detail."}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=Image.open(path).convert("RGB"), text=prompt, return_tensors="pt").to(model.device)
    with wrap(model, processor, "none") as guard:
        # The built-in model knows MSCOCO's 80 objects and has no answer about others.
        settings = Grounding(find=coco_mentions, repair="drop")
        output = guard.generate(**inputs, max_new_tokens=64, grounding=settings)
    print(output.texts[0])
    for mention in output.mentions[0]:
        print(f"  {mention.text}: {mention.score:.2f}, {mention.verdict}")
    print("repaired:", output.repaired[0].text)


if __name__ == "__main__":
    scene = load_scenes("broken", count=8) / "images" / "000000000005.png"
    main(sys.argv[1] if len(sys.argv) > 1 else str(scene))
