"""One model, many visitors: answers streamed one generation at a time, plain or guarded, and replayed on request."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from vlm_guard import wrap
from vlm_guard.demo.words import Word, split_words
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.families.architecture import inference_device
from vlm_guard.grounding.answer_text import decode
from vlm_guard.grounding.answers import ground
from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.settings import Grounding
from vlm_guard.guard import Guard
from vlm_guard.method.base import Method
from vlm_guard.method.registry import resolve_methods

Ending = Literal["running", "finished", "limit", "stopped"]
LONGEST_ANSWER = 512
LONGEST_PROMPT = 2000
STREAM_SECONDS = 0.05
"""A growing answer is shown at most this often."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How both answers are generated.

    Attributes:
        seed: set before each of the two answers.
        max_new_tokens: token limit.
        temperature: 0 is greedy search, more is sampling.
    """

    seed: int = 0
    max_new_tokens: int = 96
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= LONGEST_ANSWER:
            raise ValueError(f"the longest answer is {self.max_new_tokens} tokens; allowed: 1 to {LONGEST_ANSWER}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"the temperature is {self.temperature}; allowed: 0 (greedy) to 2")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"the seed is {self.seed}; allowed: 0 to {2**32 - 1}")

    def arguments(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        # What a checkpoint's own settings add to sampling would make two pages with one seed differ in silence.
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": 1, "top_p": None, "top_k": None}
        if self.temperature > 0:
            return {**settings, "do_sample": True, "temperature": self.temperature, "top_p": 1.0, "top_k": 0}
        return {**settings, "do_sample": False, "temperature": None}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, perhaps still growing.

    Attributes:
        text: without special tokens and surrounding blanks.
        words: its words with the tokens that spell them; empty while it grows.
        token_ids: generated tokens, the end token included.
        seconds: from the start of generation to the last token.
        ending: why it ended, or that it has not.
    """

    text: str = ""
    words: tuple[Word, ...] = ()
    token_ids: tuple[int, ...] = ()
    seconds: float = 0.0
    ending: Ending = "running"

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, reading the picture included."""
        return len(self.token_ids) / self.seconds if self.seconds else 0.0


class _StopRequested(StoppingCriteria):
    def __init__(self, asked: threading.Event) -> None:
        self.asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked.is_set(), device=input_ids.device, dtype=torch.bool)


class _TokenStream:
    """What `generate` takes as a streamer: hands every new token to a queue, the prompt left out."""

    def __init__(self) -> None:
        self.tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.tokens.put(token)

    def end(self) -> None:
        """Called by `generate` after the last token; the thread's own end is what is waited for."""


class _Repeat(LogitsProcessor):
    """Leaves only the next token of a known answer possible. Called once a token; a prompt's length may change."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.remaining = iter(token_ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.remaining)] = 0
        return forced


@dataclass(kw_only=True, eq=False)
class AnsweringModel:
    """A model and its processor, used by one generation at a time.

    Attributes:
        model: in evaluation mode. Never left guarded between two answers.
        processor: its processor.
    """

    model: Any
    processor: Any
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.template = find_template(self.processor)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)

    def encode(self, image: Image.Image, prompt: str) -> Any:
        """The model's inputs for a picture and a prompt.

        Raises:
            ValueError: the prompt is empty or too long.
        """
        prompt = prompt.strip()
        if not prompt:
            raise ValueError("the prompt is empty; write what the model should do with the picture")
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"the prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are accepted")
        image_token = getattr(self.processor, "image_token", None)
        if image_token and image_token in prompt:
            raise ValueError(f"the prompt contains {image_token!r}, which stands for the picture; leave it out")
        inputs = self.template.encode(self.processor, [image], [prompt]).to(inference_device(self.model))
        for name, value in inputs.items():
            if name.startswith("pixel_values") and torch.is_floating_point(value):
                inputs[name] = value.to(self.model.dtype)
        return inputs

    def stream(
        self,
        image: Image.Image,
        prompt: str,
        methods: Sequence[Method] = (),
        settings: GenerationSettings | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Answer]:
        """Growing answers, then the final one.

        Args:
            image: the picture.
            prompt: the visitor's words.
            methods: what guards the model; none for the plain answer.
            settings: how tokens are chosen.
            stop: set by anybody to end the answer early.

        Raises:
            ValueError: the prompt cannot be used, or a method cannot be applied to this model.
        """
        settings, stop = settings or GenerationSettings(), stop or threading.Event()
        inputs = {**self.encode(image, prompt), **_pictures_for(methods, image)}
        with self._turn, self._guarded(methods):
            stream = _TokenStream()
            arguments = settings.arguments() | {"streamer": stream}
            arguments["stopping_criteria"] = StoppingCriteriaList([_StopRequested(stop)])
            run = _Generation(self.model, {**inputs, **arguments}, settings.seed, stream)
            try:
                for token_ids, seconds in run.progress():
                    text = decode(self.tokenizer, token_ids).strip()
                    yield Answer(text=text, token_ids=token_ids, seconds=seconds)
            except GeneratorExit:
                # The visitor has gone and this iterator is closed in the middle.
                stop.set()
                raise
            finally:
                run.thread.join()
            yield self._final(run, settings, stop)

    def check(self, methods: Sequence[Method]) -> None:
        """Put the methods on the model and take them off again, so that a wrong setting is told before any answer.

        Raises:
            ValueError: a method cannot be applied to this model; the message is the command line's.
        """
        with self._turn, self._guarded(methods):
            pass

    def answer(self, *arguments: Any, **named: Any) -> Answer:
        """The final answer alone; arguments as `stream`."""
        return deque(self.stream(*arguments, **named), maxlen=1)[-1]

    def replay(
        self,
        image: Image.Image,
        prompt: str,
        methods: Sequence[Method],
        answer: Answer,
        settings: GenerationSettings,
        read: Callable[[Any, Guard], Any],
    ) -> Any:
        """Lead the model along a known answer, recording attention, and return what `read(trace, guard)` makes of it.

        Every step's tokens are those of `answer`, whatever the methods are, so that the attention of two guards can
        be compared word by word.

        Raises:
            ValueError: the answer is empty, or a method cannot be applied to this model.
        """
        if not answer.token_ids:
            raise ValueError("the answer is empty, so there is no word to look at")
        inputs = {**self.encode(image, prompt), **_pictures_for(methods, image)}
        forced = LogitsProcessorList([_Repeat(answer.token_ids)])
        greedy = replace(settings, temperature=0.0, max_new_tokens=len(answer.token_ids)).arguments()
        with self._turn, self._guarded(methods or resolve_methods("none")) as guard:
            torch.manual_seed(settings.seed)
            with torch.inference_mode(), guard.trace() as trace:
                guard.generate(**inputs, **greedy, logits_processor=forced)
            return read(trace, guard)

    def ground(
        self, image: Image.Image, prompt: str, answers: Sequence[Answer], settings: Grounding
    ) -> list[GroundedAnswer]:
        """Score what each of several answers to one prompt mentions; the plain model is asked.

        Raises:
            ValueError: the prompt cannot be used, or this model's answers cannot be scored.
        """
        inputs = self.encode(image, prompt)
        # Sequences of one batch have one length; padding behind an answer does not count.
        pad = self.model.generation_config.pad_token_id
        longest = max(1, *(len(answer.token_ids) for answer in answers))
        if pad is None:
            pad = self._end_tokens()[0]
        rows = [[*answer.token_ids, *[pad] * (longest - len(answer.token_ids))] for answer in answers]
        sequences = torch.tensor(rows, device=inputs["input_ids"].device)
        with self._turn, self._guarded(resolve_methods("none")) as guard, torch.inference_mode():
            return ground(guard, inputs, sequences, settings)

    @contextmanager
    def _guarded(self, methods: Sequence[Method]) -> Iterator[Any]:
        if not methods:
            yield None
            return
        with wrap(self.model, self.processor, list(methods)) as guard:
            yield guard

    def _final(self, run: "_Generation", settings: GenerationSettings, stop: threading.Event) -> Answer:
        run.raise_error()
        text, words = split_words(self.tokenizer, run.token_ids)
        ending: Ending = "finished"
        if stop.is_set():
            ending = "stopped"
        elif len(run.token_ids) >= settings.max_new_tokens and run.token_ids[-1] not in self._end_tokens():
            ending = "limit"
        return Answer(text=text, words=words, token_ids=tuple(run.token_ids), seconds=run.seconds, ending=ending)

    def _end_tokens(self) -> tuple[int, ...]:
        given = self.model.generation_config.eos_token_id
        return tuple(given) if isinstance(given, list | tuple) else (given,)


def _pictures_for(methods: Sequence[Method], image: Image.Image) -> dict[str, Any]:
    """The picture itself for methods that rewrite the inputs; the pixels may have lost its detail."""
    return {"images": [image]} if any(method.overrides("edit_inputs") for method in methods) else {}


class _Generation:
    """`generate` in a thread of its own, so that its tokens can be shown as they come."""

    def __init__(self, model: Any, arguments: dict[str, Any], seed: int, stream: _TokenStream) -> None:
        self.token_ids: list[int] = []
        self.seconds = 0.0
        self._error: BaseException | None = None
        self._stream, self._model, self._arguments, self._seed = stream, model, arguments, seed
        self._began = time.perf_counter()
        self.thread = threading.Thread(target=self._run, daemon=True, name="generate")
        self.thread.start()

    def _run(self) -> None:
        try:
            torch.manual_seed(self._seed)
            with torch.inference_mode():
                self._model.generate(**self._arguments)
        except BaseException as error:
            self._error = error
        finally:
            self.seconds = time.perf_counter() - self._began
            self._stream.tokens.put(None)

    def progress(self) -> Iterator[tuple[tuple[int, ...], float]]:
        """The tokens so far and the seconds they took, whenever there is something new to show."""
        shown = self._began
        while (token := self._stream.tokens.get()) is not None:
            self.token_ids.append(token)
            now = time.perf_counter()
            if now - shown >= STREAM_SECONDS:
                shown = now
                yield tuple(self.token_ids), now - self._began

    def raise_error(self) -> None:
        """Raise in the asking thread what went wrong in the generating one."""
        if self._error is not None:
            raise self._error
