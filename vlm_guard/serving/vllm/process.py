"""The served guards of a vLLM process, and what of vLLM's configuration they cannot go with."""

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from vlm_guard.serving.vllm.declaration import ENVIRONMENT, Declaration
from vlm_guard.serving.vllm.served_guards import ServedGuards, meta_model
from vlm_guard.serving.vllm.start.engine import SCHEDULER, WORKER

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class TensorParallelHeads:
    """The heads of this process, as vLLM's tensor parallelism spreads them.

    Attributes:
        rank: which share. size: of how many.
    """

    rank: int
    size: int

    def gather(self, values: Tensor, dim: int) -> Tensor:
        """The values of all processes, in order."""
        from vllm.distributed import tensor_model_parallel_all_gather

        return tensor_model_parallel_all_gather(values.contiguous(), dim)


@dataclass(frozen=True, eq=False)
class ProcessGuards:
    """The served guards of this process.

    Attributes:
        declared: what is offered.
        served: the guards.
    """

    declared: Declaration
    served: ServedGuards

    @classmethod
    def of(cls, vllm_config: "VllmConfig") -> "ProcessGuards":
        """Those of an engine's configuration; made once in a process.

        Raises:
            ValueError: a method or a setting of vLLM's cannot be served; the message says which.
        """
        declared = Declaration.of_environment()
        if declared is None:
            raise ValueError(
                "vlm_guard's parts of the engine are there, but no method is declared: start with 'vlm-guard serve "
                "MODEL --methods ...', or take the arguments of LLM from vlm_guard.serving.vllm.engine_options"
            )
        refuse_settings(vllm_config, declared)
        return _made(_Model.of(vllm_config), os.environ[ENVIRONMENT])


@dataclass(frozen=True)
class _Model:
    """What makes guards differ from engine to engine: the model, and this process's share of its heads."""

    name: str
    revision: str | None
    trusted: bool
    rank: int
    size: int

    @classmethod
    def of(cls, vllm_config: "VllmConfig") -> "_Model":
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        size = parallel.tensor_parallel_size
        return cls(model.model, model.revision, model.trust_remote_code, parallel.rank % size, size)


@cache
def _made(model: _Model, environment: str) -> ProcessGuards:
    """The guards of what an environment declares."""
    declared = Declaration.of_environment({ENVIRONMENT: environment})
    if declared is None:
        raise RuntimeError("guards were asked for where nothing is declared")
    split = TensorParallelHeads(model.rank, model.size) if model.size > 1 else None
    return ProcessGuards(
        declared, ServedGuards(declared, *meta_model(model.name, model.revision, model.trusted), split)
    )


_PLAIN_CACHES = "auto", "bfloat16", "float16", "float32"


def refuse_settings(vllm_config: "VllmConfig", declared: Declaration) -> None:
    """Refuse what the guards were not made for.

    Raises:
        ValueError: with the setting and what to do.
    """
    scheduler = vllm_config.scheduler_config
    found = scheduler.scheduler_cls
    name = found if isinstance(found, str) or found is None else f"{found.__module__}.{found.__qualname__}"
    if name != SCHEDULER:
        raise ValueError(
            f"guards need --scheduler-cls {SCHEDULER} (it is {name}): without it their keys and values would be "
            "read by requests of other methods; 'vlm-guard serve' and engine_options set it"
        )
    if vllm_config.speculative_config is not None:
        raise ValueError("guards cannot go with speculative decoding: its drafts are made by an unguarded model")
    if vllm_config.lora_config is not None:
        raise ValueError("guards were not tested with LoRA inside vLLM; merge the adapter into the checkpoint")
    if vllm_config.kv_transfer_config is not None:
        raise ValueError("guards cannot go with a KV connector: it hands on keys and values without their method")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("guards were not tested with pipeline parallelism; use --tensor-parallel-size")
    if str(vllm_config.cache_config.cache_dtype) not in _PLAIN_CACHES:
        raise ValueError("guards read keys and values as they are; leave --kv-cache-dtype at auto")
    if scheduler.async_scheduling:
        raise ValueError("guards need --no-async-scheduling: a step must know the tokens of the one before")
    observing = [offer.name for offer in declared.offers.values() if offer.observes]
    observing += ["the lens"] if "lens" in declared.grounding else []
    if observing and not vllm_config.model_config.enforce_eager:
        raise ValueError(
            f"{observing[0]} looks at the hidden states between the layers, which a compiled model does not show: it "
            "needs --enforce-eager; 'vlm-guard serve' and engine_options set it"
        )
    extension = vllm_config.parallel_config.worker_extension_cls
    if "lens" in declared.grounding and extension != WORKER:
        raise ValueError(
            f"the lens needs --worker-extension-cls {WORKER} (it is {extension or 'none'}); 'vlm-guard serve' and "
            "engine_options set it"
        )
    whole = [offer.name for offer in declared.offers.values() if offer.whole_prompt]
    if whole and scheduler.max_num_batched_tokens < vllm_config.model_config.max_model_len:
        raise ValueError(
            f"{whole[0]} reads a prompt in one step, so --max-num-batched-tokens "
            f"({scheduler.max_num_batched_tokens}) must be at least --max-model-len "
            f"({vllm_config.model_config.max_model_len})"
        )
    beside = [offer.name for offer in declared.offers.values() if offer.reads_beside]
    if beside and scheduler.max_num_batched_tokens < 2 * vllm_config.model_config.max_model_len:
        raise ValueError(
            f"{beside[0]} reads a prompt and its text alone in one step, so --max-num-batched-tokens "
            f"({scheduler.max_num_batched_tokens}) must be at least twice --max-model-len "
            f"({vllm_config.model_config.max_model_len})"
        )
    if not declared.reads_two:
        return
    if scheduler.policy != "fcfs":
        raise ValueError(f"methods that read two prompts need --scheduling-policy fcfs, given {scheduler.policy}")
    if scheduler.max_num_seqs < 2:
        raise ValueError("these methods read two prompts at once: --max-num-seqs must be at least 2")
