"""The two classes lmms-eval loads: `VLMGuard` for tasks in its simple form, `VLMGuardChat` for its chat form.

The interface, as of lmms-eval 0.7.3 (lmms_eval/api/model.py, evaluator.py, docs/guides/model_guide.md): the
constructor gets the pairs of `--model_args` as keywords, plus batch_size, max_batch_size and device where they are
set; `task_dict[task][split][doc_id]` is a task's document; `clean` is called after the last answer.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from tqdm import tqdm

from vlm_guard.eval.lmms_eval_plugin import INSTALL_HINT
from vlm_guard.eval.lmms_eval_plugin.answering import GuardedModel
from vlm_guard.eval.lmms_eval_plugin.decoding import read_gen_kwargs
from vlm_guard.eval.lmms_eval_plugin.questions import Question, from_context, from_messages

try:
    from lmms_eval.api.model import lmms
except ModuleNotFoundError as missing:
    raise ImportError(f"{INSTALL_HINT} ({missing})") from missing

_GENERATION_ONLY = (
    "the model vlm_guard of lmms-eval runs tasks of output_type generate_until, and this one is {kind}. {reason} "
    "Choose a generate_until task, or one of lmms-eval's own models for an unguarded score."
)


class VLMGuard(lmms):
    """A guarded model for tasks that give a text and a list of pictures.

    Args:
        pretrained: "builtin", "smol", a folder or a Hugging Face id.
        method: "auto", "var+vcd", ...; "none" runs the same model unguarded.
        batch_size: questions per batch; only those of equal generation settings are put together.
        device: "auto", "cpu", "cuda", "cuda:1"; with several processes each takes the GPU of its local rank.
        dtype, device_map, revision, trust_remote_code: as in `vlm_guard.eval.run.models.load_model`.
        attn_implementation: transformers' name of an attention function; None keeps the checkpoint's.
        min_pixels, max_pixels: for Qwen's processors and their relatives: between how many pixels a picture is scaled.
        max_batch_size: accepted because lmms-eval may pass it; there is no search for a batch size.
        **options: the methods' options by dotted name, `var.move_fraction=0.5`.

    Raises:
        ValueError: an unknown argument, method or option, or a model that cannot be loaded or guarded.
    """

    is_simple: ClassVar[bool] = True

    def __init__(
        self,
        pretrained: str,
        method: str = "auto",
        *,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.batch_size = _read_batch_size(batch_size)
        self.guarded = GuardedModel(
            pretrained,
            method,
            _read_options(options),
            dtype=dtype,
            device=_device_of_process(device),
            device_map=device_map,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts what it gathers between processes."""
        return self.guarded.device

    def question(self, arguments: tuple) -> Question:
        """The question in a request's arguments (context, gen_kwargs, doc_to_visual, doc_id, task, split)."""
        context, _, doc_to_visual, doc_id, task, split = arguments
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual is not None else ()
        return from_context(context, visuals)

    def gen_kwargs(self, arguments: tuple) -> dict[str, Any]:
        """The generation settings in a request's arguments."""
        return arguments[1]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in the order of the requests.

        Raises:
            ValueError: a task gives videos or sound, or generation settings that are out of range.
        """
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="vlm_guard", disable=self.rank != 0) as progress:
            for places in self._batches(requests):
                settings = self.gen_kwargs(requests[places[0]].args)
                questions = [self.question(requests[place].args) for place in places]
                texts = self.guarded.answer(questions, read_gen_kwargs(settings))
                for place, text in zip(places, texts):
                    answers[place] = text
                    self.cache_hook.add_partial("generate_until", (requests[place].args[0], settings), text)
                progress.update(len(places))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused.

        Raises:
            ValueError: always, saying what can be run instead.
        """
        reason = (
            "It scores given answers, which a contrast method cannot: its probabilities exist only for tokens that "
            "generate has chosen step by step, with two prompts at once."
        )
        raise ValueError(_GENERATION_ONLY.format(kind="loglikelihood", reason=reason))

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused.

        Raises:
            ValueError: always, saying what can be run instead.
        """
        reason = "Tasks that ask again depending on the last answer are not supported."
        raise ValueError(_GENERATION_ONLY.format(kind="generate_until_multi_round", reason=reason))

    def clean(self) -> None:
        """Remove the guard and let go of the model; lmms-eval calls it after the last answer."""
        self.guarded.release()
        super().clean()

    def _batches(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        """Places of requests that are answered together: of equal generation settings, in their order."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            key = json.dumps(self.gen_kwargs(request.args), sort_keys=True, default=repr)
            groups.setdefault(key, []).append(place)
        for places in groups.values():
            for begin in range(0, len(places), self.batch_size):
                yield places[begin : begin + self.batch_size]


class VLMGuardChat(VLMGuard):
    """The same for tasks that give structured messages: several turns, pictures anywhere among the text."""

    is_simple: ClassVar[bool] = False

    def question(self, arguments: tuple) -> Question:
        """The question in a request's arguments ([context,] doc_to_messages, gen_kwargs, doc_id, task, split)."""
        from lmms_eval.protocol import ChatMessages

        doc_to_messages, _, doc_id, task, split = arguments[-5:]
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        return from_messages(messages.model_dump()["messages"])

    def gen_kwargs(self, arguments: tuple) -> dict[str, Any]:
        """The generation settings in a request's arguments."""
        return arguments[-4]


def _read_batch_size(given: int | str) -> int:
    """lmms-eval hands its `--batch_size` over as text."""
    if not str(given).isdecimal() or int(given) < 1:
        raise ValueError(f"batch_size is {given!r}; allowed: whole numbers from 1, as no size is searched for")
    return int(given)


def _read_options(given: dict[str, Any]) -> dict[str, str]:
    """Method options as text again, which lmms-eval has turned into numbers and truth values where it could."""
    options = {}
    for name, value in given.items():
        if "." not in name:
            raise ValueError(
                f"vlm_guard has no argument {name!r}; allowed: pretrained, method, dtype, device_map, "
                "attn_implementation, revision, trust_remote_code, min_pixels, max_pixels, and options of methods such "
                "as var.move_fraction=0.5"
            )
        text = str(value).lower() if isinstance(value, bool) else str(value)
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        options[name] = text[1:-1] if quoted else text
    return options


def _device_of_process(device: str) -> str:
    """With several processes "auto" and "cuda" mean the GPU of the local rank."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device
