"""What is measured of a batch of answers: the parts of every mention's score, and its box."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlm_guard.families.patch_grid import PlacedImage
from vlm_guard.grounding.answer_text import decode, token_spans
from vlm_guard.grounding.boxes import box_around_peak, images_by_row
from vlm_guard.grounding.lens import PromptLens, VisualStates, spellings
from vlm_guard.grounding.likelihood import answer_log_probs
from vlm_guard.grounding.mention import Box, FoundMention, MentionFinder
from vlm_guard.grounding.presence import self_check
from vlm_guard.grounding.readout import ModelReadout
from vlm_guard.grounding.settings import Grounding
from vlm_guard.grounding.shared_prompt import AnsweredPrompt, asked_inputs, read_alone, require_prompt
from vlm_guard.method.visual_tokens import visual_mask
from vlm_guard.untrusted.printed_text import shown

if TYPE_CHECKING:
    from vlm_guard.guard import Guard


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadAnswer:
    """An answer that has been read.

    Attributes:
        prompt: number of the prompt it answers.
        ids: its tokens, without the end token.
        text: what they spell.
        found: its mentions, in order.
        tokens: the tokens that spell each of them, (first, behind the last).
    """

    prompt: int
    ids: list[int]
    text: str
    found: list[FoundMention]
    tokens: list[tuple[int, int]]

    @classmethod
    def of(cls, tokenizer: Any, ids: list[int], prompt: int, find: MentionFinder) -> "ReadAnswer":
        """Read the tokens of an answer.

        Raises:
            ValueError: the finder gave a mention that lies outside of the text.
        """
        text, spans = token_spans(tokenizer, ids)
        found = _in_order(find, text)
        tokens = []
        for mention in found:
            mine = [n for n, (start, end) in enumerate(spans) if start < mention.end and end > mention.start]
            tokens.append((mine[0], mine[-1] + 1) if mine else (0, 0))
        return cls(prompt=prompt, ids=ids, text=text, found=found, tokens=tokens)

    @classmethod
    def of_text(cls, tokenizer: Any, text: str, find: MentionFinder, ids: Sequence[int] | None = None) -> "ReadAnswer":
        """Read an answer of which the text is known.

        Args:
            tokenizer: of the model.
            text: the answer.
            find: from a text to its mentions.
            ids: its tokens, where they are known; else they are those that the tokenizer gives the text. Where it
                cannot write the text as it stands (characters that it does not know), mentions have no tokens.

        Raises:
            ValueError: the ids spell another text, or the finder gave a mention that lies outside of it.
        """
        stripped = text.strip()
        given = tokenizer.encode(stripped, add_special_tokens=False) if ids is None else list(ids)
        spelled = decode(tokenizer, given).strip()
        if spelled == stripped:
            return cls.of(tokenizer, given, 0, find)
        if ids is not None:
            raise ValueError(f"the answer's token ids spell {shown(spelled)}, and its text is {shown(stripped)}")
        found = _in_order(find, stripped)
        return cls(prompt=0, ids=[], text=stripped, found=found, tokens=[(0, 0)] * len(found))

    def words(self, tokenizer: Any) -> list[list[list[int]]]:
        """Of each mention its spellings, see `spellings`."""

        def spell(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        return [
            spellings(self.text[found.start : found.end], found.noun, spell, self.ids[first:last])
            for found, (first, last) in zip(self.found, self.tokens, strict=True)
        ]


def _in_order(find: MentionFinder, text: str) -> list[FoundMention]:
    """The mentions of a text, the first ones first.

    Raises:
        ValueError: one lies outside of it.
    """
    found = sorted(find(text), key=lambda mention: mention.start)
    for mention in found:
        if not 0 <= mention.start < mention.end <= len(text):
            raise ValueError(
                f"the finder of mentions gave {mention!r}, which lies outside of a text of {len(text)} characters"
            )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What was measured of a batch.

    Attributes:
        settings: what was asked for.
        words: of every answer its mentions' spellings; none without a lens.
        with_image: for each prompt, whether it has a picture.
        asked: for each prompt the self-check of its answers' things.
        lens: what the visual tokens say, if that was asked for and there is a mention.
        images: for each prompt its pictures with their grids, where these are known.
        seen, blind: log-probabilities of the answers' tokens with and without the pictures, by the answer's number.
    """

    settings: Grounding
    words: list[list[list[list[int]]]]
    with_image: list[bool]
    asked: list[dict[str, float]]
    lens: PromptLens | None = None
    images: list[list[PlacedImage]]
    seen: dict[int, Tensor]
    blind: dict[int, Tensor]

    @classmethod
    def of(
        cls,
        guard: "Guard",
        inputs: Mapping[str, Any],
        answers: Sequence[ReadAnswer],
        nouns: Sequence[Sequence[str]],
        settings: Grounding,
        states: VisualStates | None,
        answered: AnsweredPrompt | None = None,
    ) -> "Measured":
        """Measure what `settings` asks for.

        Args:
            guard: of the model; its methods stand aside.
            inputs: of `generate`.
            answers: the answers.
            nouns: for each prompt the things that its answers mention; none where it has no picture.
            settings: what is measured.
            states: hidden states of the prompts' visual tokens, or where they are to be kept; None without a lens.
            answered: the plain model's own call that gave the answers, if it was one.
        """
        prompt = require_prompt(guard, inputs, "grounding")
        asked: list[dict[str, float]] = [{} for _ in nouns]
        lens = None
        images: list[list[PlacedImage]] = [[] for _ in nouns]
        words: list[list[list[list[int]]]] = []
        if any(nouns):
            wanted = None if states is None or states.complete else states
            if "self_check" in settings.parts:
                values = self_check(guard, inputs, nouns, question=settings.question, states=wanted, answered=answered)
                asked = [dict(zip(row, value, strict=True)) for row, value in zip(nouns, values, strict=True)]
            elif wanted is not None:
                read_alone(guard, asked_inputs(guard, inputs, prompt.same()), wanted)
            if states is not None:
                visual = visual_mask(prompt.input_ids, prompt.visual_token_ids)
                images = images_by_row(guard.target.model, inputs, visual)
                words = [answer.words(guard.target.processor.tokenizer) for answer in answers]
                watched: list[set[int]] = [set() for _ in nouns]
                for answer, ways in zip(answers, words, strict=True):
                    watched[answer.prompt] |= {token for mention in ways for way in mention for token in way}
                lens = PromptLens(states, ModelReadout.of(guard), len(nouns), watched)
        likely: dict[str, dict[int, Tensor]] = {part: {} for part in ("seen", "blind")}
        spoken = [number for number, answer in enumerate(answers) if answer.found and nouns[answer.prompt]]
        for name, pictures, needed in (
            ("seen", True, {"logp", "dependence"} & set(settings.parts)),
            ("blind", False, {"dependence"} & set(settings.parts)),
        ):
            if needed and spoken:
                read = [(answers[number].prompt, answers[number].ids) for number in spoken]
                values_of = answer_log_probs(guard, inputs, prompt, read, pictures=pictures)
                likely[name] = dict(zip(spoken, values_of, strict=True))
        return cls(
            settings=settings,
            words=words,
            with_image=prompt.has_image.tolist(),
            asked=asked,
            lens=lens,
            images=images,
            seen=likely["seen"],
            blind=likely["blind"],
        )

    def of_mention(self, number: int, answer: ReadAnswer, index: int) -> tuple[dict[str, float], Box | None]:
        """The parts of one mention, in the order of the settings, and its box; nothing where there is no picture.

        Args:
            number: of the answer in its batch.
            answer: the answer.
            index: of the mention in it.
        """
        if not self.with_image[answer.prompt]:
            return {}, None
        found, (first, _) = answer.found[index], answer.tokens[index]
        parts: dict[str, float] = {"position": -float(first)}
        box = None
        if found.noun in self.asked[answer.prompt]:
            parts["self_check"] = self.asked[answer.prompt][found.noun]
        if self.lens is not None:
            ways = self.words[number][index]
            parts["lens"] = self.lens.log_prob(answer.prompt, ways)
            box = box_around_peak(self.lens.patch_log_probs(answer.prompt, ways), self.images[answer.prompt])
        seen, blind = self.seen.get(number), self.blind.get(number)
        if seen is not None and first < len(seen):
            parts["logp"] = float(seen[first])
            if blind is not None:
                parts["dependence"] = float(seen[first] - blind[first])
        return {part: parts[part] for part in self.settings.parts if part in parts}, box
