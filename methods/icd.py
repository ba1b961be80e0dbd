"""ICD: instruction contrastive decoding (Findings of ACL 2024, arXiv 2403.18715).

An instruction that makes the model vague or confused brings out its hallucinations. ICD reads the same picture and
question a second time with such a disturbance in front and moves away from those logits.

Station: logits; z' = (1 + strength) z - strength z(disturbed), kept where z >= max z + ln(plausibility).

Five disturbances are shipped under names that say what they do; the released code evaluates five of this kind and does
not record which one a table row used, so the wording here is ours and the default is the confused detector, the
paper's example. The release replaces LLaVA's system message. `generate` gets token ids, so the disturbance is
inserted into them: with `place="start"` behind the leading BOS token, which is where LLaVA's system message stands;
with "user" directly in front of the first image and its start marker. "auto" takes "start" for a prompt that begins
with BOS and an ordinary token, and "user" for chat formats that open with role markers.
The picture is encoded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_guard.method import Branch, ContrastCall, Method, contrast_logits, option, register
from vlm_guard.method.branch_prompt import first_visual, image_markers

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
class ICD(Method):
    """Move away from what the model says under a disturbing instruction."""

    title = "ICD"
    paper = (
        "Mitigating Hallucinations in Large Vision-Language Models with Instruction Contrastive Decoding, "
        "Findings of ACL 2024, arXiv 2403.18715"
    )
    stations = ("logits",)
    needs = ("processor", "second branch")
    compiles = True

    strength: float = option(
        1.0,
        help="how far to move away from the disturbed logits",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha = 1",
    )
    plausibility: float = option(
        0.1,
        help="tokens less than this times as probable as the best are ruled out",
        range=(0.0, 1.0),
        neutral=0.0,
        tried=(0.5, 0.7),
        paper="beta = 0.1",
    )
    disturbance: str = option(
        "confused", help="which disturbing instruction to read", choices=tuple(DISTURBANCES), paper="five in the code"
    )
    text: str = option("", help="an instruction of your own in place of the named one")
    place: str = option("auto", help="where the instruction is inserted", choices=("auto", "start", "user"))

    def contrasts(self) -> bool:
        """Strength 0 switches the second branch off."""
        return self.strength > 0

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The same picture and question behind a disturbing instruction."""
        tokenizer = call.tokenizer
        words = self.text or DISTURBANCES[self.disturbance]
        tokens = tokenizer.encode(words + " ", add_special_tokens=False)
        markers = image_markers(call.model, call.processor)

        def find(ids: list[int]) -> int:
            return self._position(ids, tokenizer, call.prompt.visual_token_ids, markers)

        prompt = call.prompt.with_inserted(tokens, find)
        return Branch(prompt=prompt, images="same", active=prompt.changed)

    def combine_logits(self, positive: Tensor, negative: Tensor, step: int) -> Tensor:
        """(1 + strength) positive - strength negative, on plausible tokens."""
        return contrast_logits(positive, negative, self.strength, self.plausibility)

    def _position(
        self, ids: Sequence[int], tokenizer: Any, visual_token_ids: tuple[int, ...], markers: frozenset[int]
    ) -> int:
        special = set(tokenizer.all_special_ids)
        has_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        place = self.place
        if place == "auto":
            # A prompt that has BOS and then words has no role markers that an instruction could break.
            plain = has_bos and len(ids) > 1 and (ids[1] not in special or ids[1] in visual_token_ids)
            place = "start" if plain else "user"
        if place == "start":
            return 1 if has_bos else 0
        image = first_visual(ids, visual_token_ids, markers)
        return int(has_bos) if image is None else image
