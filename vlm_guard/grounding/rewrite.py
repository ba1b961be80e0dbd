"""Sentences that no rule can mend are decoded again, without the things that are not in the picture.

The model goes on from the answer as repaired so far, greedily and under the same methods; the first tokens of the
doubtful things are forbidden until the sentence ends. One try: a new sentence that is doubtful too, that does not end,
or that stands in the answer already, is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from vlm_guard.grounding.answer_text import decode
from vlm_guard.grounding.lens import spellings
from vlm_guard.grounding.mention import Mention
from vlm_guard.grounding.repair import Removed, Repaired, Sentence, first_sentence, joined, repaired_sentences
from vlm_guard.grounding.shared_prompt import asked_inputs
from vlm_guard.method.branch_prompt import INSERTED, BranchPrompt, GivenPrompt

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

LONGEST_SENTENCE = 64
"""Tokens."""

Score = Callable[[Tensor], Sequence[Sequence[Mention]]]
"""From [B, T] ids of new answers to their mentions."""
# One greedy answer to each prompt, whatever the call or the model's own settings say.
_GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "min_new_tokens": None}


class Rewriter:
    """Repairs answers by the rules, and what these cannot mend by decoding again.

    Args:
        guard: of the model.
        prompt: what was asked.
        inputs: of `generate`.
        generate: the guard's, with the method of the call.
        score: scores new sentences, one for each prompt.
    """

    def __init__(
        self,
        guard: "Guard",
        prompt: GivenPrompt,
        inputs: Mapping[str, Any],
        generate: Callable[..., Any],
        score: Score,
    ) -> None:
        self._guard = guard
        self._prompt = prompt
        self._inputs = inputs
        self._generate = generate
        self._score = score
        self._tokenizer = guard.target.processor.tokenizer

    def repair(self, texts: Sequence[str], mentions: Sequence[Sequence[Mention]]) -> list[Repaired]:
        """The answers after the rules and one try for every sentence that they could not mend.

        Args:
            texts: N answers, N a multiple of the number of prompts.
            mentions: of each answer.
        """
        sentences = [repaired_sentences(text, found) for text, found in zip(texts, mentions, strict=True)]
        waiting = [[n for n, item in enumerate(row) if item.unclean] for row in sentences]
        repeats = len(texts) // len(self._prompt.input_ids)
        for turn in range(repeats):
            answers = range(turn, len(texts), repeats)
            while any(waiting[answer] for answer in answers):
                chosen = [waiting[answer].pop(0) if waiting[answer] else None for answer in answers]
                rows = [
                    None if number is None else (texts[answer], sentences[answer], number)
                    for answer, number in zip(answers, chosen)
                ]
                for answer, number, found in zip(answers, chosen, self._again(rows)):
                    if number is not None and found is not None:
                        sentences[answer][number] = found
        return [joined(text, row) for text, row in zip(texts, sentences)]

    def _again(self, rows: Sequence[tuple[str, list[Sentence], int] | None]) -> list[Sentence | None]:
        """One sentence of each row, decoded again; None where it stays away."""
        fronts = [
            None if row is None else joined(row[0][: row[1][row[2]].start], row[1][: row[2]]).text for row in rows
        ]
        forbidden = [[] if row is None else self._first_tokens(row[1][row[2]].removed) for row in rows]
        prompt = self._going_on(fronts)
        given = asked_inputs(self._guard, self._inputs, prompt)
        processors = LogitsProcessorList([_Forbid(forbidden)])
        length = prompt.length
        ends = StoppingCriteriaList([_SentenceEnds(self._tokenizer, length, [row is not None for row in rows])])
        output = self._generate(
            **given,
            **_GREEDY,
            max_new_tokens=LONGEST_SENTENCE,
            logits_processor=processors,
            stopping_criteria=ends,
            return_dict_in_generate=True,
        ).sequences
        if output.shape[1] >= length and torch.equal(output[:, :length], prompt.input_ids.to(output.device)):
            output = output[:, length:]
        return self._accepted(rows, fronts, output)

    def _accepted(
        self, rows: Sequence[tuple[str, list[Sentence], int] | None], fronts: Sequence[str | None], output: Tensor
    ) -> list[Sentence | None]:
        """The new sentences that nothing speaks against."""
        new = [
            "" if row is None else first_sentence(decode(self._tokenizer, ids))
            for row, ids in zip(rows, output.tolist())
        ]
        pad = self._guard.target.model.generation_config.pad_token_id or 0
        ids = [self._tokenizer.encode(f" {text}", add_special_tokens=False) if text else [] for text in new]
        longest = max(1, *map(len, ids))
        padded = torch.tensor([row + [pad] * (longest - len(row)) for row in ids], device=output.device)
        found: list[Sentence | None] = []
        for row, front, text, mentions in zip(rows, fronts, new, self._score(padded)):
            doubtful = any(mention.verdict == "doubtful" for mention in mentions)
            if row is None or front is None or not text or doubtful or text in front:
                found.append(None)
                continue
            old = row[1][row[2]]
            gone = tuple(replace(part, how="rewritten") for part in old.removed)
            found.append(replace(old, text=text, removed=gone, unclean=False))
        return found

    def _first_tokens(self, removed: Sequence[Removed]) -> list[int]:
        def spell(text: str) -> list[int]:
            return self._tokenizer.encode(text, add_special_tokens=False)

        nouns = dict.fromkeys(noun for part in removed for noun in part.nouns)
        return sorted(
            {ids[0] for noun in nouns for word in (noun, noun.capitalize()) for ids in spellings(word, noun, spell)}
        )

    def _going_on(self, fronts: Sequence[str | None]) -> BranchPrompt:
        """Every prompt with the answer so far behind it."""
        rows = []
        for ids, real, front in zip(self._prompt.input_ids.tolist(), self._prompt.attention_mask.tolist(), fronts):
            places = [place for place, is_real in enumerate(real) if is_real]
            text = self._tokenizer.encode(f" {front}", add_special_tokens=False) if front else []
            rows.append(([ids[place] for place in places] + text, places + [INSERTED] * len(text)))
        return BranchPrompt.from_rows(rows, [True] * len(rows), self._prompt.pad_id, self._prompt.input_ids.device)


class _Forbid(LogitsProcessor):
    """Tokens that a row must not have. With a second branch it is called for the rows of the answers alone."""

    def __init__(self, forbidden: Sequence[Sequence[int]]) -> None:
        self._forbidden = forbidden

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, ids in enumerate(self._forbidden):
            scores[row, list(ids)] = -torch.inf
        return scores


class _SentenceEnds(StoppingCriteria):
    """Stops a row where its first sentence ends; rows that nobody waits for stop at once."""

    def __init__(self, tokenizer: Any, start: int, wanted: Sequence[bool]) -> None:
        self._tokenizer, self._start, self._wanted = tokenizer, start, wanted

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        start = self._start if input_ids.shape[1] > self._start else 0
        ended = [
            not wanted or bool(first_sentence(decode(self._tokenizer, row[start:])))
            for wanted, row in zip(self._wanted, input_ids.tolist())
        ]
        return torch.tensor(ended, device=input_ids.device)
