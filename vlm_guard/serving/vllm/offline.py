"""vLLM's `LLM` in this process, for programs that have prompts to be answered in batches, such as an evaluation.

What a batch is answered with does not depend on the batches before it: nothing is taken from a cache of keys and
values, and nothing from a cache of pictures.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch

from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.serving.vllm.declaration import ENVIRONMENT, KEY, PLAIN, Declaration
from vlm_guard.serving.vllm.grounding.asked_mentions import AskedMentions
from vlm_guard.serving.vllm.grounding.offline import score
from vlm_guard.serving.vllm.start.checkpoint_names import accept_new_names
from vlm_guard.serving.vllm.start.engine import guarded_options
from vlm_guard.serving.vllm.start.plugin import register, withdraw

# One process, so that its memory is the engine's. What a user has set of the others stays.
_ALWAYS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_DEFAULTS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_BLOCK = 128
_LEAST_STEP = 4096


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt with one picture.

    Attributes:
        ids: its token ids, each picture one placeholder.
        picture: a `PIL.Image.Image`.
        offer: the name of the method that answers it.
        seed: of its draws; None where nothing is drawn.
    """

    ids: Sequence[int]
    picture: Any
    offer: str = PLAIN
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What came of a prompt.

    Attributes:
        prompt: [P] the token ids that the model read, placeholders for every patch.
        ids: of the answer, with the token that ended it.
        ended: "stop" where the model ended by itself, "length", or why there is no whole answer.
        logits: by token id those of the answer's first token that were asked for, after what the method does.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    ended: str
    logits: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class OfflineSettings:
    """How an engine is started.

    Attributes:
        source: a folder or a Hugging Face id. revision: of the id. trust_remote_code: run code of the checkpoint.
        dtype: of the weights, as `torch` names it.
        length: longest prompt with its answer, in tokens.
        together: how many prompts are answered at once.
        whole: never read a prompt in pieces (the CPU build cannot draw with seeds otherwise).
        seed: of draws without a seed of their own.
    """

    source: str
    revision: str | None
    trust_remote_code: bool
    dtype: str
    length: int
    together: int
    whole: bool = False
    seed: int = 0


class OfflineEngine:
    """An engine of vLLM in this process.

    Args:
        settings: how it is started.
        config: the model's configuration, from transformers.
        declared: the methods it serves beside the plain model; None for the plain model alone, as vLLM has it.

    Raises:
        ValueError: vLLM cannot load the model, or has not the memory for it.
    """

    def __init__(self, settings: OfflineSettings, config: Any, declared: Declaration | None) -> None:
        os.environ.update(_ALWAYS)
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        options: dict[str, Any] = {}
        if declared is None:
            os.environ.pop(ENVIRONMENT, None)
            withdraw()
        else:
            options = guarded_options(declared)
            register()
        accept_new_names()
        from vllm import LLM

        rows = settings.together * (2 if declared is not None and declared.reads_two else 1)
        longest = settings.length * (2 if declared is not None and declared.reads_beside else 1)
        step = settings.length * rows if settings.whole else max(longest, _LEAST_STEP)
        self._guarded = declared is not None
        self._llm = LLM(
            settings.source,
            revision=settings.revision,
            tokenizer_revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            dtype=settings.dtype,
            max_model_len=settings.length,
            max_num_seqs=rows,
            max_num_batched_tokens=step,
            kv_cache_memory_bytes=_cache_bytes(config, settings.dtype, settings.length, rows),
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            use_tqdm_on_load=False,
            limit_mm_per_prompt={"image": 1},
            logprobs_mode="processed_logits",
            seed=settings.seed,
            **{"enforce_eager": True, **options},
        )

    def score(self, answers: Sequence[AskedMentions]) -> list[GroundedAnswer]:
        """Score the mentions of answers to prompts of token ids (`AnsweredIds`).

        Raises:
            ValueError: vLLM refuses a prompt.
        """
        return score(self._llm, answers, partial(self._llm.generate, use_tqdm=False))

    def answer(
        self, prompts: Sequence[Prompt], tokens: int, sampling: Mapping[str, Any], watched: Sequence[int] = ()
    ) -> list[Completion]:
        """Answer prompts together.

        Args:
            prompts: what is asked.
            tokens: the limit of every answer.
            sampling: further arguments of vLLM's `SamplingParams`.
            watched: the token ids whose first logits are wanted.

        Raises:
            ValueError: vLLM refuses a prompt.
        """
        from vllm import SamplingParams

        given = [{"prompt_token_ids": list(p.ids), "multi_modal_data": {"image": p.picture}} for p in prompts]
        params = [
            SamplingParams(
                max_tokens=tokens,
                seed=prompt.seed,
                detokenize=False,
                logprob_token_ids=list(watched) or None,
                extra_args={KEY: prompt.offer} if self._guarded else None,
                **sampling,
            )
            for prompt in prompts
        ]
        return [_completion(found, watched) for found in self._llm.generate(given, params, use_tqdm=False)]


def _completion(found: Any, watched: Sequence[int]) -> Completion:
    output = found.outputs[0]
    first = output.logprobs[0] if watched and output.logprobs else {}
    return Completion(
        prompt=tuple(found.prompt_token_ids),
        ids=tuple(output.token_ids),
        ended=str(output.finish_reason),
        logits={token: first[token].logprob for token in watched if token in first},
    )


def _cache_bytes(config: Any, dtype: str, length: int, rows: int) -> int:
    """Memory for the keys and values of all rows at their longest, at most half of what is free.

    vLLM would take nearly all memory of the machine by itself.
    """
    psutil: Any = import_module("psutil")  # one of vLLM's own requirements

    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    block = 2 * text.num_hidden_layers * heads * dim * _BLOCK * getattr(torch, dtype).itemsize
    blocks = rows * -(-length // _BLOCK) + 1  # vLLM keeps one for itself
    return min(blocks * block, psutil.virtual_memory().available // 2)
