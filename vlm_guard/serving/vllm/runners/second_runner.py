"""vLLM's second model runner: who came and who left, which rows of a step they have, and what they go on with.

Requests have a slot from when they come until they leave. Which of them a step reads, and in which rows, is said by the
description of the step (`req_idx`), so the table of guarded rows is laid out anew for every step.
"""

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.process import ProcessGuards
from vlm_guard.serving.vllm.rows import SEED, GuardedRequest, RowTable, table_of
from vlm_guard.serving.vllm.runners.contrasts import OffersOnly, contrast_pairs
from vlm_guard.serving.vllm.start.checkpoint_names import accept_new_names
from vlm_guard.serving.vllm.start.plugin import refuse_unregistered

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

_DONE = "_vlm_guard_follows_requests"


class GuardedSlots(OffersOnly, LogitsProcessor):
    """Contrasts the logits of pairs.

    Args:
        vllm_config: of the engine.
        req_states: vLLM's own table of requests.
    """

    def __init__(self, vllm_config: "VllmConfig", req_states: Any) -> None:
        refuse_unregistered(vllm_config)
        self._guards = ProcessGuards.of(vllm_config)
        self.table = table_of(vllm_config.instance_id)
        self.table.clear()

    def add_request(self, req_idx: int, sampling_params: "SamplingParams") -> bool:
        """Whether the logits of a request that has come are ever changed."""
        served = self._guards.served.asked(sampling_params.extra_args)
        return served is not None and served.contrast is not None

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Contrast the logits [rows, V] of every pair, in both of its rows.

        Raises:
            RuntimeError: the branches of a pair are not at the same token, which must never be.
        """
        contrast_pairs(logits, list(self.table.pairs(logits.shape[0])), self.table, self._guards.served)
        return logits


class SlotKeeper:
    """The guarded requests of one engine, from when they come until they leave.

    vLLM takes a request off its batch to make room for others, and adds it anew later. What methods have found in its
    prompt is kept meanwhile.

    Args:
        table: of the engine.
        guards: of this process.
    """

    def __init__(self, table: RowTable, guards: ProcessGuards) -> None:
        self._table = table
        self._guards = guards
        self._known: dict[str, GuardedRequest] = {}

    def come(self, name: str, slot: int, new: Any) -> None:
        """A request has got a slot.

        Args:
            name: the request's own.
            slot: the number of its slot.
            new: what the scheduler says of it.
        """
        self._table.slots.pop(slot, None)
        params, prompt = new.sampling_params, new.prompt_token_ids
        if params is None or prompt is None or not self._guards.served.follows(params.extra_args):
            return
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = GuardedRequest(params.extra_args or {}, prompt, [])
        known.answer = new.prefill_token_ids[len(prompt) :]
        self._table.slots[slot] = known

    def leave(self, names: Any) -> None:
        """Requests have ended."""
        for name in names:
            gone = self._known.pop(name, None)
            if gone is not None:
                self._table.slots = {slot: kept for slot, kept in self._table.slots.items() if kept is not gone}


def follow_requests() -> None:
    """Make vLLM's second runner say who comes and who leaves, and its sampler share tokens; done once in a process."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    if _DONE in vars(GPUModelRunner):
        return
    accept_new_names()  # this runner makes its logits processors when the model is loaded already
    add, finish, sample = GPUModelRunner.add_requests, GPUModelRunner.finish_requests, Sampler.__call__

    @functools.wraps(add)
    def add_requests(self: Any, scheduler_output: Any) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            # The scheduler takes the seed from pairs for the first runner, whose draws advance while prompts are read.
            seed = (getattr(new.sampling_params, "extra_args", None) or {}).get(SEED)
            if seed is not None:
                new.sampling_params.seed = seed
        add(self, scheduler_output)
        keeper = _keeper(self)
        if keeper is None:
            return
        for new in scheduler_output.scheduled_new_reqs:
            keeper.come(new.req_id, self.req_states.req_id_to_index[new.req_id], new)

    @functools.wraps(finish)
    def finish_requests(self: Any, scheduler_output: Any) -> None:
        finish(self, scheduler_output)
        keeper = _keeper(self)
        if keeper is not None:
            keeper.leave(scheduler_output.finished_req_ids)

    @functools.wraps(sample)
    def share_tokens(self: Any, logits: Tensor, input_batch: Any) -> Any:
        output = sample(self, logits, input_batch)
        for processor in self.logits_processors:
            if isinstance(processor, GuardedSlots):
                for pair in processor.table.pairs(logits.shape[0]):
                    output.sampled_token_ids[pair.shadow] = output.sampled_token_ids[pair.asked]
        return output

    GPUModelRunner.add_requests = add_requests
    GPUModelRunner.finish_requests = finish_requests
    Sampler.__call__ = share_tokens
    setattr(GPUModelRunner, _DONE, True)


def _keeper(runner: Any) -> SlotKeeper | None:
    """That of a runner; None in a plain engine, which may follow a guarded one in the same process."""
    kept: SlotKeeper | None = vars(runner).get("_vlm_guard_slots")
    if kept is None and Declaration.of_environment() is not None:
        config = runner.vllm_config
        kept = runner._vlm_guard_slots = SlotKeeper(table_of(config.instance_id), ProcessGuards.of(config))
    return kept
