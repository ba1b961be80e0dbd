"""ICD: instruction contrastive decoding (Findings of ACL 2024, arXiv 2403.18715).

An instruction that makes the model vague or confused brings out its hallucinations. ICD reads the same picture and
question a second time with such a disturbance in front and moves away from those logits.

Station: logits; z' = (1 + strength) z - strength z(disturbed), kept where z >= max z + ln(plausibility).

Five disturbances are shipped under names that say what they do; the released code evaluates five of this kind and does
not record which one a table row used, so the wording here is ours and the default is the confused detector, the
paper's example. The release puts it in the place of the system message, and so does the default, `place="system"`: the
message is found by the processor's chat template, or in front of "USER:" in plain prompts; a prompt without one gets
it where one would stand. The other places insert it into the prompt and leave what is there: "start" behind the leading
BOS token; "user" directly in front of the first image and its start marker; "auto" takes "start" for a prompt that
begins with BOS and an ordinary token, and "user" for chat formats that open with role markers. "system" falls back to
"auto" where the format knows no system message.
The picture is encoded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_guard.method import (
    INSERTED,
    Branch,
    ContrastCall,
    ContrastMethod,
    first_visual,
    image_markers,
    option,
    plausibility_option,
    register,
)
from vlm_guard.methods.icd.system_message import system_format, with_system_message

DISTURBANCES = {
    "confused": "You are a confused object detector. You give a fuzzy overview or impression of the image.",
    "vague": "You are an object detector. You only give a general overview or impression of the image.",
    "avoiding": "You are an object detector. Avoid identifying or categorising anything in the image specifically.",
    "detecting": "You are an object detector. You recognise every different object in the image.",
    "relations": (
        "You are an object detector. You recognise every different object in the image by its shape and colour and "
        "by how the objects relate to each other."
    ),
}


@register("icd")
@dataclass(frozen=True, kw_only=True)
class ICD(ContrastMethod):
    """Move away from what the model says under a disturbing instruction."""

    title = "ICD"
    paper = (
        "Mitigating Hallucinations in Large Vision-Language Models with Instruction Contrastive Decoding, "
        "Findings of ACL 2024, arXiv 2403.18715"
    )
    needs = ("processor", "second branch")

    strength: float = option(
        1.0,
        help="how far to move away from the disturbed logits",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha = 1",
    )
    plausibility: float = plausibility_option("beta = 0.1")
    disturbance: str = option(
        "confused", help="which disturbing instruction to read", choices=tuple(DISTURBANCES), paper="five in the code"
    )
    text: str = option("", help="an instruction of your own in place of the named one")
    place: str = option(
        "system",
        help="in place of the system message, or inserted: behind BOS, before the image, or as the format suggests",
        choices=("system", "start", "user", "auto"),
        paper="in place of the system message in the released code",
    )

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The same picture and question behind a disturbing instruction."""
        tokenizer = call.tokenizer
        words = self.text or DISTURBANCES[self.disturbance]
        tokens = tokenizer.encode(words + " ", add_special_tokens=False)
        markers, visual = image_markers(call.model, call.processor), call.prompt.visual_token_ids
        form = system_format(call.processor) if self.place == "system" else None

        def disturb(ids: list[int], places: list[int]) -> tuple[list[int], list[int]]:
            if self.place == "system":
                image = first_visual(ids, visual, markers)
                stop = len(ids) if image is None else image
                replaced = with_system_message(ids, places, stop, words, tokenizer, form)
                if replaced is not None:
                    return replaced
            at = self._position(ids, tokenizer, visual, markers)
            return ids[:at] + tokens + ids[at:], places[:at] + [INSERTED] * len(tokens) + places[at:]

        prompt = call.prompt.edited(disturb)
        return Branch(prompt=prompt, images="same", active=prompt.changed)

    def _position(
        self, ids: Sequence[int], tokenizer: Any, visual_token_ids: tuple[int, ...], markers: frozenset[int]
    ) -> int:
        special = set(tokenizer.all_special_ids)
        has_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        place = self.place
        if place in ("auto", "system"):
            # A prompt that has BOS and then words has no role markers that an instruction could break.
            plain = has_bos and len(ids) > 1 and (ids[1] not in special or ids[1] in visual_token_ids)
            place = "start" if plain else "user"
        if place == "start":
            return 1 if has_bos else 0
        image = first_visual(ids, visual_token_ids, markers)
        return int(has_bos) if image is None else image
