"""The mentions of one answer: what has to be asked about them, and what comes of the replies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Protocol

from vlm_guard.families.profiles import Profile, find_profile
from vlm_guard.grounding.answers import repair_limit, scored_mention
from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.measured import ReadAnswer
from vlm_guard.grounding.mention import Box
from vlm_guard.grounding.presence import answer_ids, question_about
from vlm_guard.grounding.repair import drop_doubtful, to_take_out
from vlm_guard.grounding.score import weights_of
from vlm_guard.grounding.settings import Grounding, Part
from vlm_guard.serving.vllm.declaration import SERVED_PARTS
from vlm_guard.serving.vllm.start.chat_template import served_chat_template

MOST_THINGS = 128
"""Of so many things of one answer a server asks at most: each of them is a request."""


class PromptToAsk(Protocol):
    """A prompt and its answer, in whatever form the engine takes prompts."""

    @property
    def answer(self) -> str:
        """The text of the answer."""

    @property
    def shows_picture(self) -> bool:
        """Whether the prompt has a picture."""

    @property
    def prompt(self) -> Any:
        """The prompt."""

    def question(self, text: str) -> Any:
        """The same with `text` asked about its last picture in the place of what was."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MentionReader:
    """What is needed of a model to read answers; it is not loaded.

    Attributes:
        tokenizer: of the model.
        profile: of the model, if there is one.
        offered: the parts of a score that the engine measures.
        chat_template: with which vLLM reads the ids that the model's processor does; None for the model's own.
    """

    tokenizer: Any
    profile: Profile | None
    offered: tuple[Part, ...]
    chat_template: str | None = None

    @classmethod
    def of_engine(cls, model_config: Any, offered: tuple[Part, ...]) -> "MentionReader":
        """From vLLM's description of the model."""
        named = model_config.model, model_config.revision, model_config.trust_remote_code
        config, processor = _config_and_processor(*named)
        return cls(
            tokenizer=processor.tokenizer,
            profile=find_profile(config),
            offered=offered,
            chat_template=served_chat_template(processor),
        )

    @cached_property
    def yes_and_no(self) -> tuple[list[int], list[int]]:
        """The tokens that spell Yes, and those that spell No."""
        return answer_ids(self.tokenizer)

    def read(
        self, conversation: PromptToAsk, settings: Grounding | None = None, token_ids: Sequence[int] | None = None
    ) -> "AskedMentions":
        """Find the mentions of an answer.

        Args:
            conversation: with the answer.
            settings: what is measured; by default all that the engine measures.
            token_ids: of the answer, where they are known.

        Raises:
            ValueError: a part that the engine does not measure, too many things, or a repair that it cannot do.
        """
        settings = settings or Grounding(parts=tuple(part for part in SERVED_PARTS if part in self.offered))
        lacking = [part for part in settings.parts if part not in self.offered]
        if lacking:
            raise ValueError(
                f"{lacking[0]} is not measured by this engine; it measures {', '.join(self.offered) or 'nothing'} "
                f"(--grounding {','.join(SERVED_PARTS)})"
            )
        if settings.lens_layers is not None:
            raise ValueError(
                f"lens_layers is {list(settings.lens_layers)}: inside vLLM the lens reads the layers that the model's "
                "profile names when the engine starts (grounding_lens_layers)"
            )
        if settings.repair == "rewrite":
            raise ValueError("repair 'rewrite' writes sentences again, which is not done inside vLLM; allowed: drop")
        answer = ReadAnswer.of_text(self.tokenizer, conversation.answer, settings.find, token_ids)
        asked = AskedMentions(reader=self, conversation=conversation, settings=settings, answer=answer)
        if len(asked.things) > MOST_THINGS:
            raise ValueError(
                f"the answer mentions {len(asked.things)} things, and at most {MOST_THINGS} are asked about; send it "
                "in parts"
            )
        return asked


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedMentions:
    """The mentions of one answer.

    Attributes:
        reader: of the model.
        conversation: with the answer.
        settings: what is measured.
        answer: the answer, read.
    """

    reader: MentionReader
    conversation: PromptToAsk
    settings: Grounding
    answer: ReadAnswer

    @cached_property
    def things(self) -> list[str]:
        """What is asked about: everything the answer mentions, once; nothing without a picture."""
        if not self.conversation.shows_picture:
            return []
        return list(dict.fromkeys(found.noun for found in self.answer.found))

    @cached_property
    def weights(self) -> dict[str, float] | None:
        """The fitted weights of the score; None where nobody has measured this model's."""
        return weights_of(self.reader.profile, self.settings.parts)

    @cached_property
    def words(self) -> list[list[list[int]]]:
        """Of each mention its spellings, as token ids."""
        return self.answer.words(self.reader.tokenizer)

    @property
    def reads_lens(self) -> bool:
        """Whether the first request's picture is read by the lens."""
        return "lens" in self.settings.parts and bool(self.things)

    @cached_property
    def requests(self) -> list[Any]:
        """The prompts that must be answered with one token each, one for every thing.

        Without a self-check a single one, which is read for the lens alone.
        """
        if "self_check" not in self.settings.parts:
            return [self.conversation.prompt] if self.reads_lens else []
        asked = [question_about(self.settings.question, thing) for thing in self.things]
        return [self.conversation.question(text) for text in asked]

    def value(self, log_probs: Mapping[int, float]) -> float:
        """logit(Yes) - logit(No), from the log-probabilities of `MentionReader.yes_and_no`."""
        yes, no = (_log_sum([log_probs[token] for token in ids]) for ids in self.reader.yes_and_no)
        return yes - no

    def result(self, values: Sequence[float], lens: Mapping[str, Any] | None) -> GroundedAnswer:
        """The answer with its scores.

        Args:
            values: of every thing the self-check; none where it was not asked for.
            lens: what the worker said of `words`; None where nothing was asked.
        """
        checked = dict(zip(self.things, values, strict=True)) if values else {}
        mentions = []
        for index, found in enumerate(self.answer.found):
            parts: dict[str, float] = {}
            box = None
            if found.noun in checked:
                parts["self_check"] = checked[found.noun]
            if lens is not None:
                parts["lens"] = lens["log_probs"][index]
                box = None if lens["boxes"][index] is None else Box(**lens["boxes"][index])
            named: dict[str, float] = {part: parts[part] for part in self.settings.parts if part in parts}
            mentions.append(scored_mention(self.answer, index, (named, box), self.settings, self.weights))
        answer = GroundedAnswer(text=self.answer.text, mentions=mentions)
        if self.settings.repair is None:
            return answer
        below = repair_limit(self.settings, self.reader.profile)
        repaired = replace(drop_doubtful(answer.text, to_take_out(mentions, below)), below=below)
        return replace(answer, repaired=repaired)


@cache
def _config_and_processor(name: str, revision: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Of a model that is not loaded; read once in a process."""
    from transformers import AutoConfig, AutoProcessor

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    return AutoConfig.from_pretrained(name, **options), AutoProcessor.from_pretrained(name, **options)


def _log_sum(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))
