"""The model in this process answers, inside vLLM, batch by batch: `--engine vllm`.

Prompts, methods, records and scores are those of a run in transformers; only who computes is another.
"""

import copy
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vlm_guard.builtin_model import is_shipped, shipped_folder
from vlm_guard.eval.run.batches import Batch
from vlm_guard.eval.run.engines.base import Answered, Engine, Job, JobAnswers, SampleAnswer, prepared_ahead
from vlm_guard.eval.run.engines.served_mentions import scores_mentions
from vlm_guard.eval.run.engines.vllm_settings import NAME, offer_texts, sampling_arguments
from vlm_guard.eval.run.environment import all_versions, decisive_versions, hardware
from vlm_guard.eval.run.generation import MemoryPeak, ReadBatch, read_batch
from vlm_guard.eval.run.models import choose_dtype, generation_settings, identify, prepare_processor
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.run.settings import MethodSpec, RunSettings
from vlm_guard.eval.tasks.base import Sample, Task
from vlm_guard.eval.tasks.pope.parsers import yes_no_token_ids
from vlm_guard.families.processor_needs import refuse_missing_folder
from vlm_guard.families.profiles import find_profile
from vlm_guard.guard import Guard
from vlm_guard.method.base import Method
from vlm_guard.method.registry import resolve_methods
from vlm_guard.serving.vllm.declaration import PLAIN, SERVED_PARTS, Declaration
from vlm_guard.serving.vllm.grounding.answered_ids import AnsweredIds
from vlm_guard.serving.vllm.grounding.asked_mentions import MentionReader
from vlm_guard.serving.vllm.offline import Completion, OfflineEngine, OfflineSettings, Prompt
from vlm_guard.serving.vllm.served_guards import ServedGuards, meta_model
from vlm_guard.serving.vllm.versions import installed_version

# As in transformers, timing starts after one untimed answer of this many tokens.
_WARM_UP_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A batch whose pictures are read and whose prompts are token ids, placeholders not yet repeated."""

    read: ReadBatch
    ids: list[list[int]]


class InVLLM(Engine):
    """Loads the model into vLLM once every method is known to work with it.

    Args:
        settings: of the run; `check_settings` has seen them.
        specs: its methods.

    Raises:
        ValueError, FileNotFoundError: the model cannot be loaded, or a method cannot be served for it.
    """

    timed = "generate"

    def __init__(self, settings: RunSettings, specs: Sequence[MethodSpec]) -> None:
        self.specs = specs
        self.batch_size = settings.batch_size
        self._settings = settings
        source = str(shipped_folder(settings.model)) if is_shipped(settings.model) else settings.model
        refuse_missing_folder(source)
        model, self._processor = meta_model(source, settings.revision, settings.trust_remote_code)
        prepare_processor(self._processor)
        # Another thread prepares prompts; a tokenizer must not be shared with it (see `in_process`).
        self._reading_processor = copy.deepcopy(self._processor)
        self.template = find_template(self._processor, settings.template)
        self._own = generation_settings(source, settings.revision, model.config)
        self._sampling = sampling_arguments(settings.decoding, self._own)
        self._profile = find_profile(model.config)
        self._offers = offer_texts(settings, specs, model)
        wanted = [text for text in dict.fromkeys(self._offers) if text != PLAIN]
        parts = ",".join(SERVED_PARTS) if any(map(scores_mentions, settings.tasks)) else None
        declared = Declaration.read(";".join(wanted), None, parts) if wanted or parts else None
        self._served = None if declared is None else ServedGuards(declared, model, self._processor)
        self._plain = None if parts is None else Guard(model, self._processor, resolve_methods(PLAIN))
        dtype = str(choose_dtype(settings.dtype, "cpu")).removeprefix("torch.")
        self._identity = identify(settings.model, model, dtype=dtype, device="cpu") | {"engine": NAME}
        given = OfflineSettings(
            source=source,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            dtype=dtype,
            length=settings.max_model_len or model.config.get_text_config(decoder=True).max_position_embeddings,
            together=settings.batch_size,
            whole=settings.decoding.do_sample,
            seed=settings.seed,
        )
        self._length = given.length
        self._llm = OfflineEngine(given, model.config, declared)
        self._yes_no = _yes_no(self._processor)
        self._warm: set[tuple[int, str]] = set()
        self._checked = False

    def fingerprint(self, method: int) -> dict[str, Any]:
        """What decides the answers of a method besides data and tasks."""
        settings = self._settings
        decoding = {**settings.decoding.model_dump(), "seed": settings.seed, "batch_size": settings.batch_size}
        return {
            "template": self.template.describe(),
            "decoding": {**decoding, "checkpoint": self._own.kept},
            "model": self.model(),
            "methods": [found.describe() for found in self._methods(method)],
            "attention_backend": None,
            "profile": None if self._profile is None else asdict(self._profile),
            "versions": decisive_versions() | _vllm(),
        }

    def _methods(self, method: int) -> Sequence[Method]:
        """A method of the run with the settings that the model's profile has for it."""
        if self._served is None or self._offers[method] == PLAIN:
            return self.specs[method].methods
        return [bound.method for bound in self._served.by_name[self._offers[method]].guard.methods]

    def model(self) -> dict[str, Any]:
        """Which weights these are, and that vLLM runs them."""
        return self._identity

    def surroundings(self) -> dict[str, Any]:
        """Packages and hardware of this process."""
        return {"versions": all_versions() | _vllm(), "hardware": hardware()}

    def answers(self, jobs: Sequence[Job]) -> Answered:
        """Answer jobs in their order; the pictures of the next batch are read meanwhile."""
        with closing(prepared_ahead(jobs, self._prepare)) as ahead:
            for job, prepared in ahead:
                yield job, self._answer(job, prepared)

    def _prepare(self, batch: Batch) -> _Prepared:
        read = read_batch(batch.samples, batch.task)
        ids = [self.template.ids(self._reading_processor, sample.prompt) for sample in read.samples]
        return _Prepared(read=read, ids=ids)

    def _answer(self, job: Job, prepared: _Prepared) -> JobAnswers:
        """Ask one batch with one method."""
        read, task, limit = prepared.read, job.batch.task, job.batch.task.max_new_tokens
        if not read.samples:
            return JobAnswers(answers=(), broken=read.broken)
        self._check_ids(prepared)
        prompts = self._prompts(job, prepared)
        watched = self._yes_no if task.watches_yes_no and not self._settings.decoding.do_sample else ([], [])
        every = [*watched[0], *watched[1]]
        if (job.method, task.name) not in self._warm:
            self._llm.answer(prompts, min(limit, _WARM_UP_TOKENS), self._sampling, every)
            self._warm.add((job.method, task.name))
        memory = MemoryPeak(torch.device("cpu"))
        begin = time.perf_counter()
        found = self._llm.answer(prompts, limit, self._sampling, every)
        seconds, peak = (time.perf_counter() - begin) / len(prompts), memory.bytes()
        scored = self._scored(task, prompts, found, read.samples)
        answers, broken = [], dict(read.broken)
        for sample, came in zip(read.samples, found, strict=True):
            if came.ended not in ("stop", "length"):
                broken[sample.key] = f"vLLM gave no whole answer ({came.ended})"
                continue
            self._refuse_cut(sample.key, came, limit)
            answers.append(
                SampleAnswer(
                    sample=sample,
                    text=self._text(came),
                    tokens=len(came.ids),
                    finished=came.ended == "stop",
                    seconds=seconds,
                    memory_bytes=peak,
                    memory_kind=memory.kind,
                    yes_margin=_margin(came, *watched),
                    measured=scored.get(sample.key, {}),
                )
            )
        return JobAnswers(answers=answers, broken=broken)

    def _text(self, came: Completion) -> str:
        return self._processor.decode(list(came.ids), skip_special_tokens=True).strip()

    def _scored(
        self, task: Task, prompts: Sequence[Prompt], found: Sequence[Completion], samples: Sequence[Sample]
    ) -> dict[str, dict[str, Any]]:
        """By sample what the task keeps of its answer's mentions; nothing for tasks that have none scored."""
        grounding = task.grounding()
        if grounding is None or self._plain is None:
            return {}
        reader = MentionReader(tokenizer=self._processor.tokenizer, profile=self._profile, offered=SERVED_PARTS)
        asked = [
            reader.read(AnsweredIds(self._plain, one.ids, one.picture, self._text(came)), grounding, came.ids)
            for one, came in zip(prompts, found, strict=True)
        ]
        answers = zip(samples, self._llm.score(asked), strict=True)
        return {sample.key: task.scored(answer) for sample, answer in answers}

    def _prompts(self, job: Job, prepared: _Prepared) -> list[Prompt]:
        drawn = self._settings.decoding.do_sample
        seed = job.batch.seed(self._settings.seed)
        return [
            Prompt(
                ids=ids,
                picture=picture,
                offer=self._offers[job.method],
                seed=(seed * 1_000_003 + row) % 2**63 if drawn else None,
            )
            for row, (ids, picture) in enumerate(zip(prepared.ids, prepared.read.pictures, strict=True))
        ]

    def _check_ids(self, prepared: _Prepared) -> None:
        """Hold the ids that vLLM reads of the first prompt of a run against the processor's.

        Raises:
            ValueError: they differ, so that vLLM would answer another prompt.
        """
        if self._checked:
            return
        sample, picture = prepared.read.samples[0], prepared.read.pictures[0]
        wanted = self.template.encode(self._processor, [picture], [sample.prompt])["input_ids"][0].tolist()
        (found,) = self._llm.answer([Prompt(ids=prepared.ids[0], picture=picture)], 1, self._sampling)
        if list(found.prompt) != wanted:
            raise ValueError(
                f"vLLM reads other tokens for {sample.key} ({len(found.prompt)}) than the model's processor makes "
                f"({len(wanted)}), so it would answer another prompt; leave --engine out"
            )
        self._checked = True

    def _refuse_cut(self, key: str, came: Completion, limit: int) -> None:
        """Refuse an answer that ended because vLLM has no more room, and not at the limit of its task.

        Raises:
            ValueError: it did.
        """
        if came.ended == "length" and len(came.ids) < limit:
            raise ValueError(
                f"the answer to {key} would be cut off after {len(came.ids)} of {limit} tokens, since a prompt and its "
                f"answer may have {self._length} together; give a greater --max-model-len, or a smaller token limit"
            )


def _yes_no(processor: Any) -> tuple[list[int], list[int]]:
    """The tokens for yes and for no; none where the tokenizer has no single ones."""
    try:
        return yes_no_token_ids(getattr(processor, "tokenizer", processor))
    except ValueError:
        return [], []


def _margin(came: Completion, yes: Sequence[int], no: Sequence[int]) -> float | None:
    """How much the first token's logits prefer yes to no; None where that is not known, or not finite."""
    if not yes or not came.logits:
        return None
    margin = max(came.logits[token] for token in yes) - max(came.logits[token] for token in no)
    return round(margin, 6) if math.isfinite(margin) else None


def _vllm() -> dict[str, str]:
    version = installed_version()
    return {} if version is None else {"vllm": version}
