"""A method of your own, in a file of your own: add a constant to the scores that visual tokens get in attention.

    python examples/own_method.py
    vlm-guard generate PICTURE --method none --method examples/own_method.py:strength=2

The class is all there is to write. What else a method can do is in docs/new-method.md.
"""

from dataclasses import dataclass

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import AttentionCall, KeyEditMethod, option, register


@register("glance")
@dataclass(frozen=True, kw_only=True)
class Glance(KeyEditMethod):
    """Look at the picture a little more, in every layer."""

    title = "Glance"
    paper = "an example"
    rows = "answer"  # edit the rows that words are read from: the prompt's last one and those of the answer

    strength: float = option(1.0, help="what is added to the score of each visual token", range=(0, 10), neutral=0.0)

    def edit_keys(self, call: AttentionCall) -> AttentionEdit | None:
        """What happens to the keys: a bias [B, 1, 1, K], which serves all heads and rows."""
        if self.strength == 0:
            return None
        visual = call.state.visual.to(call.query.device)  # [B, K], True where a key is a visual token
        return AttentionEdit(bias=visual[:, None, None, :].float() * self.strength)


def main() -> None:
    """Answer about a drawn scene at three strengths."""
    from vlm_guard import builtin, wrap
    from vlm_guard.eval.scenes import load_scenes

    model, processor = builtin()
    picture = load_scenes("common", count=8) / "images" / "000000000004.png"
    content = [
        {"type": "image", "path": str(picture)},
        {"type": "text", "text": "Please describe this image in detail."},
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    for strength in (0.0, 0.5, 1.0):
        with wrap(model, processor, Glance(strength=strength)) as guard:
            output = guard.generate(**inputs, max_new_tokens=96, do_sample=False)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"[strength {strength}] {answer.strip()}")


if __name__ == "__main__":
    main()
