"""The model in this process answers, through transformers, batch by batch."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

from vlm_guard.eval.run.batches import Batch
from vlm_guard.eval.run.decoding import CheckpointDecoding
from vlm_guard.eval.run.engines.base import Answered, Engine, Job, JobAnswers, SampleAnswer, prepared_ahead
from vlm_guard.eval.run.environment import all_versions, decisive_versions, hardware
from vlm_guard.eval.run.first_token import yes_no_margin
from vlm_guard.eval.run.generation import PreparedBatch, generate_batch, prepare_batch
from vlm_guard.eval.run.models import load_model
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.run.settings import MethodSpec, RunSettings
from vlm_guard.grounding.answers import ground
from vlm_guard.guard import Guard, wrap

# Timing starts after one untimed answer of this many tokens, which pays for first-call set-up.
_WARM_UP_TOKENS = 2


class InProcess(Engine):
    """Loads the model and tries every method on it.

    Args:
        settings: of the run.
        specs: its methods.
        device: where the model goes.

    Attributes:
        loaded: the model with its processor.
        guards: by method; each is attached only while it answers.
        template: how prompts are put to the model.
        reading_processor: prepares the next batch in another thread. Tokenizers must not be shared with it: setting the
            padding of one that is encoding or decoding elsewhere fails ("Already borrowed").

    Raises:
        ValueError, FileNotFoundError: the model cannot be loaded, or a method cannot be applied to it.
    """

    timed = "generate"

    def __init__(self, settings: RunSettings, specs: Sequence[MethodSpec], device: str) -> None:
        self.specs = specs
        self.batch_size = settings.batch_size
        self._settings = settings
        self.loaded = load_model(
            settings.model,
            dtype=settings.dtype,
            device=device,
            revision=settings.revision,
            device_map=settings.device_map,
            trust_remote_code=settings.trust_remote_code,
            pack_weights=settings.pack_weights,
        )
        self.guards: list[Guard] = []
        for spec in specs:
            with wrap(
                self.loaded.model,
                self.loaded.processor,
                list(spec.methods),
                attention_backend=settings.attention_backend,
            ) as guard:
                self.guards.append(guard)
        self.reading_processor = copy.deepcopy(self.loaded.processor)
        self.template = find_template(self.loaded.processor, settings.template)
        self._warm: set[tuple[int, str]] = set()

    def fingerprint(self, method: int) -> dict[str, Any]:
        """What decides the answers of a method besides data and tasks."""
        profile = self.guards[method].target.profile
        return {
            "template": self.template.describe(),
            "decoding": self._decoding(),
            "model": self.model(),
            "methods": [bound.method.describe() for bound in self.guards[method].methods],
            "attention_backend": self._settings.attention_backend,
            "profile": None if profile is None else asdict(profile),
            "versions": decisive_versions(),
        }

    def model(self) -> dict[str, Any]:
        """Which weights these are."""
        return self.loaded.identity

    def surroundings(self) -> dict[str, Any]:
        """Packages and hardware of this process."""
        return {"versions": all_versions(), "hardware": hardware()}

    def _decoding(self) -> dict[str, Any]:
        """How tokens are chosen: ours, and what the checkpoint's own generation settings add."""
        kept = CheckpointDecoding.of(self.loaded.model.generation_config).kept
        settings = self._settings
        ours = settings.decoding.model_dump()
        return {**ours, "seed": settings.seed, "batch_size": settings.batch_size, "checkpoint": kept}

    def answers(self, jobs: Sequence[Job]) -> Answered:
        """Answer jobs in their order; the pictures of the next batch are read meanwhile."""
        with closing(prepared_ahead(jobs, self._prepare)) as ahead:
            for job, prepared in ahead:
                yield job, self._answer(job, prepared)

    def _prepare(self, batch: Batch) -> PreparedBatch:
        return prepare_batch(batch.samples, batch.task, self.template, self.reading_processor)

    def _answer(self, job: Job, prepared: PreparedBatch) -> JobAnswers:
        """Ask one batch with one method."""
        if not prepared.samples:
            return JobAnswers(answers=(), broken=prepared.broken)
        model, processor, settings = self.loaded.model, self.loaded.processor, self._settings
        task, seed, rows = job.batch.task, job.batch.seed(settings.seed), len(prepared.samples)
        with attached(self.guards[job.method]) as guard:
            if (job.method, task.name) not in self._warm:
                generate_batch(model, processor, prepared.inputs, settings.decoding, _WARM_UP_TOKENS, seed)
                self._warm.add((job.method, task.name))
            watch = yes_no_margin(processor, rows) if task.watches_yes_no else None
            answered = generate_batch(
                model, processor, prepared.inputs, settings.decoding, task.max_new_tokens, seed, watch
            )
            grounding = task.grounding()
            measured: list[dict[str, Any]] = [{}] * rows
            if grounding is not None:
                scored = ground(guard, answered.inputs, answered.output, grounding)
                measured = [task.scored(answer) for answer in scored]
        margins = [None] * rows if watch is None else watch.margins()
        answers = [
            SampleAnswer(
                sample=sample,
                text=answer.text,
                tokens=answer.tokens,
                finished=answer.finished,
                seconds=answered.seconds / rows,
                memory_bytes=answered.memory_bytes,
                memory_kind=answered.memory_kind,
                yes_margin=margin,
                measured=extra,
            )
            for sample, answer, extra, margin in zip(prepared.samples, answered.answers, measured, margins, strict=True)
        ]
        return JobAnswers(answers=answers, broken=prepared.broken)


@contextmanager
def attached(guard: Guard) -> Iterator[Guard]:
    """Inside, the guard's model is guarded; what its methods found out when it was made is kept between blocks."""
    guard.attach()
    try:
        yield guard
    finally:
        guard.remove()
