"""Answering one batch of prompts, with the time and the memory it took."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessorList

from vlm_guard.eval.run.decoding import Decoding
from vlm_guard.eval.run.engines.base import unreadable_reason
from vlm_guard.eval.run.first_token import YesNoMargin
from vlm_guard.eval.run.prompting import PromptTemplate
from vlm_guard.eval.tasks.base import Sample, Task
from vlm_guard.families.architecture import inference_device
from vlm_guard.untrusted.picture_reader import read_picture


@dataclass(frozen=True, kw_only=True)
class PreparedBatch:
    """A batch whose images are read and whose inputs are made.

    Attributes:
        samples: the samples that can be asked.
        inputs: model inputs on the CPU, one row per sample; None without any.
        broken: why an image could not be read, by the key of every sample that needs it.
    """

    samples: tuple[Sample, ...]
    inputs: Any
    broken: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row's answer.

    Attributes:
        text: without special tokens and surrounding blanks.
        tokens: generated tokens, the end token included.
        finished: whether the model ended by itself rather than at the token limit.
    """

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True, kw_only=True)
class AnsweredBatch:
    """The answers of a batch and what they took.

    Attributes:
        answers: row by row.
        seconds: time inside `generate`, moving the inputs to the device included.
        memory_bytes: peak memory meanwhile.
        memory_kind: what that memory is.
        inputs: what `generate` was given, on the model's device.
        output: [B, P + T] what it returned.
    """

    answers: list[Answer]
    seconds: float
    memory_bytes: int
    memory_kind: str
    inputs: Any
    output: Tensor


@dataclass(frozen=True, kw_only=True)
class ReadBatch:
    """A batch whose images are read.

    Attributes:
        samples: the samples that can be asked.
        pictures: one for each of them; samples about the same picture share it.
        broken: why an image could not be read, by the key of every sample that needs it.
    """

    samples: tuple[Sample, ...]
    pictures: tuple[Image.Image, ...]
    broken: dict[str, str]


def read_batch(samples: Sequence[Sample], task: Task) -> ReadBatch:
    """Read the pictures of a batch, each form of each once."""
    pictures: dict[tuple[int, str], Image.Image] = {}
    reasons: dict[tuple[int, str], str] = {}
    for sample in samples:
        place = (sample.image_id, sample.variant)
        if place in pictures or place in reasons:
            continue
        try:
            pictures[place] = task.picture(sample, read_picture)
        except OSError as error:
            reasons[place] = unreadable_reason(error, task.data.images[sample.image_id])
    readable = tuple(sample for sample in samples if (sample.image_id, sample.variant) in pictures)
    broken = {
        sample.key: reasons[sample.image_id, sample.variant]
        for sample in samples
        if (sample.image_id, sample.variant) in reasons
    }
    shown = tuple(pictures[sample.image_id, sample.variant] for sample in readable)
    return ReadBatch(samples=readable, pictures=shown, broken=broken)


def prepare_batch(samples: Sequence[Sample], task: Task, template: PromptTemplate, processor: Any) -> PreparedBatch:
    """Read the pictures of a batch and make the model's inputs."""
    read = read_batch(samples, task)
    inputs = None
    if read.samples:
        inputs = template.encode(processor, read.pictures, [sample.prompt for sample in read.samples])
    return PreparedBatch(samples=read.samples, inputs=inputs, broken=read.broken)


def generate_batch(
    model: Any,
    processor: Any,
    inputs: Any,
    decoding: Decoding,
    max_new_tokens: int,
    seed: int,
    watch: YesNoMargin | None = None,
) -> AnsweredBatch:
    """Answer a prepared batch.

    Args:
        model: possibly guarded.
        processor: decodes the answers.
        inputs: from `prepare_batch`.
        decoding: how tokens are chosen.
        max_new_tokens: token limit of every answer.
        seed: set before generation, so that sampling does not depend on what ran before.
        watch: reads the logits of the first token, where somebody wants them.
    """
    extra = {} if watch is None else {"logits_processor": LogitsProcessorList([watch])}
    device = inference_device(model)
    cuda = device.type == "cuda"
    torch.manual_seed(seed)
    memory = MemoryPeak(device)
    if cuda:
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    moved = inputs.to(device, dtype=model.dtype)  # changes the type of pixels only, ids stay whole numbers
    try:
        with torch.inference_mode():
            output = model.generate(**moved, max_new_tokens=max_new_tokens, **decoding.arguments(), **extra)
    except torch.OutOfMemoryError as error:
        error.add_note("Give a smaller --batch-size and another --out: the batch size is part of a run's settings.")
        raise
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    peak = memory.bytes()
    return AnsweredBatch(
        answers=read_answers(model, processor, output, moved["input_ids"]),
        seconds=seconds,
        memory_bytes=peak,
        memory_kind=memory.kind,
        inputs=moved,
        output=output,
    )


def read_answers(model: Any, processor: Any, output: Tensor, prompt: Tensor) -> list[Answer]:
    """What `generate` answered, row by row.

    Args:
        model: names the end and padding tokens.
        processor: decodes the answers.
        output: [B, prompt + new] or [B, new] token ids that `generate` returned.
        prompt: [B, prompt] token ids it was given.
    """
    ends, padding = _end_tokens(model)
    return [_read_answer(row, ends, padding, processor) for row in _new_tokens(output, prompt).tolist()]


def _read_answer(row: list[int], ends: set[int], padding: int | None, processor: Any) -> Answer:
    length = next((place + 1 for place, token in enumerate(row) if token in ends), None)
    finished = length is not None
    if length is None:
        length = len(row)
        while length and row[length - 1] == padding:
            length -= 1
    text = processor.decode(row[:length], skip_special_tokens=True).strip()
    return Answer(text=text, tokens=length, finished=finished)


def _new_tokens(output: Tensor, prompt: Tensor) -> Tensor:
    """[B, new] the generated part; encoder-decoder style models return it without the prompt."""
    length = prompt.shape[1]
    if output.shape[1] >= length and torch.equal(output[:, :length], prompt):
        return output[:, length:]
    return output


def _end_tokens(model: Any) -> tuple[set[int], int | None]:
    config = model.generation_config
    ends = config.eos_token_id
    found = set(ends) if isinstance(ends, list | tuple) else {ends} - {None}
    return found, config.pad_token_id


class MemoryPeak:
    """The peak memory from its making until `bytes` is asked.

    CUDA: bytes allocated by torch on the device. Elsewhere the resident set of the process: on Linux the kernel's
    high-water mark is set back first, so the peak belongs to the interval; where that is not allowed it is the peak
    since the process began (`kind` says which).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.kind = "allocated on the GPU"
        else:
            self.kind = "resident set" if _reset_resident_peak() else "resident set, whole process so far"

    def bytes(self) -> int:
        """Peak memory in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        status = Path("/proc/self/status")
        if status.is_file():
            for line in status.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource  # absent on Windows

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage if sys.platform == "darwin" else usage * 1024


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
