"""vLLM's scheduler, with what guards need of it.

Keys and values of guarded rows are kept apart from others (`cache_salt`). A prompt that a method must see in one step
is read in one, and what a method must see from its first token on takes nothing from the cache. A request whose method
contrasts logits gets a shadow, a second request that clients never see: both read their prompts up to the last token as
they can, and from there on sample only in steps in which both do. A request whose method compares a prompt with its
text alone enters together with a shadow that reads the text, in a step that has room for both, and goes on without it.
"""

import copy
import time
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from vlm_guard.method.base import Sign
from vlm_guard.serving.vllm.grounding.lens_requests import prepare_lens
from vlm_guard.serving.vllm.process import ProcessGuards
from vlm_guard.serving.vllm.rows import BESIDE, PAIR, SEED, SHADOW, SIDE
from vlm_guard.serving.vllm.scheduling.pairs import Pairs
from vlm_guard.serving.vllm.scheduling.shadows import Shadow, make_shadow, make_text_stream
from vlm_guard.serving.vllm.served_guards import ServedGuard

logger = init_logger(__name__)
_OTHER: dict[Sign, Sign] = {"positive": "negative", "negative": "positive"}


class GuardedScheduler(Scheduler):
    """Serves guarded requests beside plain ones.

    Raises:
        ValueError: the cache is too small for two prompts of full length, where a method contrasts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        guards = ProcessGuards.of(self.vllm_config)
        self._served = guards.served
        total = self.kv_cache_manager.block_pool.num_gpu_blocks - 1 - self.kv_cache_manager.watermark_blocks
        self._groups = len(self.kv_cache_config.kv_cache_groups)
        if guards.declared.reads_two and self._blocks_for(self.max_model_len) * 2 > total:
            raise ValueError(
                "methods that contrast, or read a prompt beside its text, read two prompts at once, and a cache of "
                f"{total} blocks does not hold two of {self.max_model_len} tokens; lower --max-model-len or give the "
                "cache more memory"
            )
        self._pairs: Pairs[Request] = Pairs(
            lambda request: self._blocks_for(request.num_prompt_tokens + request.max_tokens), total
        )
        # Requests with the reading of their text alone: held until a step has room for both, together only in that one.
        self._beside: Pairs[Request] = Pairs(lambda request: self._blocks_for(request.num_tokens), total)
        self._together: set[str] = set()
        self._whole: set[str] = set()

    # -- requests come and go ---------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Take a request in; see `Scheduler.add_request`."""
        prepare_lens(request, self._served)
        params = request.sampling_params
        served = None if params is None else self._served.asked(params.extra_args)
        if served is None:
            super().add_request(request)
            return
        if request.prompt_token_ids is None or request.prompt_is_token_ids is not None or request.resumable:
            self._fail(
                request, ValueError("guards read whole prompts of token ids, no embeddings and no growing prompts")
            )
            return
        if served.offer.whole_prompt:
            self._whole.add(request.request_id)
        shadow = None
        if served.contrast is not None:
            try:
                shadow = make_shadow(served, request.prompt_token_ids, request.mm_features)
                self._refuse_length(shadow)
            except ValueError as error:
                self._fail(request, error)
                return
        side: Sign = "positive" if shadow is None else _OTHER[shadow.sign]
        _salt(request, served.offer.salt(side))
        request.skip_reading_prefix_cache = request.skip_reading_prefix_cache or served.offer.reads_anew(side)
        if shadow is None:
            self._add_beside(request, served)
            return
        self._pairs.add(request, self._shadow_request(request, served, shadow))
        self._admit()

    def _add_beside(self, request: Request, served: ServedGuard) -> None:
        """Take in a request without a contrast, which may have to be read beside its text alone."""
        text = None
        if served.offer.reads_beside and request.prompt_token_ids is not None:
            try:
                text = make_text_stream(served, request.prompt_token_ids)
                self._refuse_length(text)
            except ValueError as error:
                self._fail(request, error)
                return
        if text is None:
            super().add_request(request)
            return
        params = request.sampling_params
        if params is None:
            raise RuntimeError("a request with a method has sampling parameters")
        given, name = params.extra_args or {}, request.request_id
        params.extra_args = {**given, BESIDE: name}
        made = self._made(request, text, {**given, BESIDE: name, SHADOW: True}, 1, request.cache_salt)
        made.skip_reading_prefix_cache = True
        self._whole.add(made.request_id)
        self._beside.add(request, made)

    @staticmethod
    def _made(
        request: Request, shadow: Shadow, extra_args: dict[str, Any], max_tokens: int, salt: str | None
    ) -> Request:
        """A request that clients do not see, greedy and without an end of its own."""
        own = copy.copy(request.sampling_params)
        if own is None:
            raise RuntimeError("a request with a method has sampling parameters")
        own.extra_args = extra_args
        own.temperature, own.ignore_eos, own.max_tokens = 0.0, True, max_tokens
        own.stop, own.stop_token_ids, own.min_tokens = [], [], 0
        own.logprobs = own.prompt_logprobs = own.structured_outputs = None
        own.seed = own.logprob_token_ids = None
        return Request(
            request_id=f"{request.request_id} shadow",
            prompt_token_ids=shadow.ids,
            sampling_params=own,
            pooling_params=None,
            client_index=request.client_index,
            arrival_time=request.arrival_time,
            mm_features=shadow.features,
            cache_salt=salt,
            priority=request.priority,
            block_hasher=request._block_hasher,
        )

    def _shadow_request(self, request: Request, served: ServedGuard, shadow: Shadow) -> Request:
        """The second branch as a request, and what tells the workers of both."""
        params = request.sampling_params
        if params is None:
            raise RuntimeError("a request with a method has sampling parameters")
        given, pair = params.extra_args or {}, request.request_id
        params.extra_args = {**given, PAIR: pair, SIDE: _OTHER[shadow.sign], SEED: params.seed}
        # Both branches go on with the request's tokens: it samples, and it alone says when the answer ends.
        params.seed = None
        request.max_tokens = min(request.max_tokens, self.max_model_len - len(shadow.ids) - 1)
        extra = {**given, PAIR: pair, SIDE: shadow.sign, SHADOW: True}
        salt = request.cache_salt if not served.offer.salt(_OTHER[shadow.sign]) else None
        made = self._made(request, shadow, extra, request.max_tokens + 1, salt)
        _salt(made, served.offer.salt(shadow.sign))
        made.skip_reading_prefix_cache = made.skip_reading_prefix_cache or served.offer.reads_anew(shadow.sign)
        return made

    def _refuse_length(self, shadow: Shadow | None) -> None:
        if shadow is not None and not 2 <= len(shadow.ids) <= self.max_model_len - 2:
            raise ValueError(
                f"the prompt of its second branch has {len(shadow.ids)} tokens, and may have 2 to "
                f"{self.max_model_len - 2}"
            )

    def _fail(self, request: Request, error: ValueError) -> None:
        """End a request that cannot be served, with an error for its client, and go on."""
        logger.warning("request %s is not served: %s", request.request_id, error)
        self.requests[request.request_id] = request
        self.encoder_cache_mismatch_reqs.add(request.request_id)

    def _admit(self) -> None:
        for request, shadow in self._pairs.admitted():
            super().add_request(request)
            super().add_request(shadow)

    def finish_requests(self, request_ids: "str | Any | None", finished_status: RequestStatus) -> list[Request]:
        """End requests and their shadows; see `Scheduler.finish_requests`."""
        wanted = [request_ids] if isinstance(request_ids, str) else request_ids
        held = [request.request_id for pairs in (self._pairs, self._beside) for request, _ in pairs.held]
        listed = [*self.requests, *held] if wanted is None else list(wanted)
        gone = [*self._pairs.withdraw(listed), *self._beside.withdraw(listed)]
        for request in gone:
            request.status = finished_status
            self._whole -= {request.request_id, f"{request.request_id} shadow"}
        listed = self._beside.with_shadows(self._pairs.with_shadows(listed))
        ended = super().finish_requests(listed, finished_status)
        known = [request for request in ended if not self._is_shadow(request.request_id)]
        for request in ended:
            self._pairs.forget(request.request_id)
            self._beside.forget(request.request_id)
        if self.finished_req_ids_dict is None:  # else the next outputs name the ended ones
            self._drop_shadows()
        return [*gone, *known]

    def _is_shadow(self, request_id: str) -> bool:
        return self._pairs.is_shadow(request_id) or self._beside.is_shadow(request_id)

    def _drop_shadows(self) -> None:
        self._pairs.drop_shadows(self.requests)
        self._beside.drop_shadows(self.requests)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self._whole.discard(request.request_id)

    def get_request_counts(self) -> tuple[int, int]:
        """How many requests run and wait."""
        running, waiting = super().get_request_counts()
        return running, waiting + len(self._pairs.held) + len(self._beside.held)

    # -- a step -----------------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Plan a step; see `Scheduler.schedule`.

        Raises:
            RuntimeError: one half of a pair was planned without the other, which must never be.
        """
        self._admit()
        preempted = self._make_room()
        pairs = self._pairs.requests()
        self._together = {
            half.request_id
            for both in pairs
            if all(half.status == RequestStatus.RUNNING and _at_last_token(half) for half in both)
            for half in both
        }
        if self._together:
            # First in line, so that the tokens of a step never end between two halves.
            self.running.sort(key=lambda running: running.request_id not in self._together)
        withheld = self._enter_beside()
        output = super().schedule(throttle_prefills)
        for request in reversed(withheld):
            self.waiting.prepend_request(request)
        if preempted and output.preempted_req_ids is not None:
            output.preempted_req_ids = output.preempted_req_ids | (preempted - output.num_scheduled_tokens.keys())
        planned = output.num_scheduled_tokens
        for request, shadow in pairs:
            if request.request_id in self._together and (request.request_id in planned) != (
                shadow.request_id in planned
            ):
                raise RuntimeError(f"the pair {request.request_id} was split")
        for request, text in self._beside.requests():
            entered = planned.get(request.request_id), planned.get(text.request_id)
            if request.request_id in self.requests and entered != (request.num_tokens, text.num_tokens):
                raise RuntimeError(f"the prompt of {request.request_id} was not read in one step with its text alone")
        return output

    def _enter_beside(self) -> list[Request]:
        """Let those requests enter that are read beside their text alone, if this step has room for both, in order.

        Where the oldest finds no room, nobody else enters: what runs ends some time, and then there is room.

        Returns:
            The requests that wait and shall not be planned in this step.
        """
        if not self._beside.held:
            return []
        halves = [r for r in self.waiting if self._waits_for_half(r)]
        first = [*self.running, *halves]
        tokens = self.max_num_scheduled_tokens - sum(r.num_tokens - r.num_computed_tokens for r in first)
        rows = self.max_num_running_reqs - len(first)
        blocks = self.kv_cache_manager.block_pool.get_num_free_blocks() - sum(map(self._next_blocks, first))
        blocks -= self.kv_cache_manager.watermark_blocks
        reading = any(r.mm_features and r.num_computed_tokens < r.num_prompt_tokens for r in first)
        pictures = 0 if reading else self.max_num_encoder_input_tokens
        entering: list[Request] = []
        while self._beside.held:
            request, text = self._beside.held[0]
            tokens -= request.num_tokens + text.num_tokens
            rows -= 2
            blocks -= self._blocks_for(request.num_tokens) + self._blocks_for(text.num_tokens)
            pictures -= sum(part.mm_position.length for part in request.mm_features)
            if min(tokens, rows, blocks, pictures) < 0:
                break
            self._beside.held.popleft()
            super().add_request(request)
            super().add_request(text)
            entering += [request, text]
        withheld: list[Request] = []
        if self._beside.held:
            kept = {r.request_id for r in [*halves, *entering]}
            withheld = [r for r in self.waiting if r.request_id not in kept]
            self.waiting.remove_requests(withheld)
        self.waiting.remove_requests([*halves, *entering])
        for request in reversed([*entering, *halves]):
            self.waiting.prepend_request(request)
        return withheld

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """How many tokens of a request a step may read; vLLM asks for every request it plans."""
        count = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        name = request.request_id
        if name in self._whole and num_computed_tokens + count < request.num_prompt_tokens:
            return 0
        if self._pairs.partner(name) is not None and name not in self._together:
            return max(0, min(count, request.num_tokens - 1 - num_computed_tokens))
        return count

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        """What of a prompt is cached; half a pair must have a token to read before its last one."""
        found = super()._get_local_prefix_cache_hit(request)
        if self._pairs.partner(request.request_id) is not None and found[1] >= request.num_tokens - 1:
            return self.kv_cache_manager.empty_kv_cache_blocks, 0, *found[2:]
        return found

    def _make_room(self) -> set[str]:
        """Preempt plain requests where pairs would be short of blocks in this step; returns who was preempted.

        Pairs have entered only with room for all of them, so without plain requests there is always enough. vLLM itself
        would preempt whoever came last, which may be half a pair.
        """
        halves = [r for r in self.waiting if self._waits_for_half(r)]
        preempted: set[str] = set()
        if halves:
            self.waiting.remove_requests(halves)
        if self._pairs.requests():
            need = sum(map(self._next_blocks, [*self.running, *halves]))
            for request in reversed(self.running.copy()):
                if need <= self.kv_cache_manager.block_pool.get_num_free_blocks():
                    break
                if self._pairs.partner(request.request_id) is None:
                    need -= self._next_blocks(request)
                    self.running.remove(request)
                    self._preempt_request(request, time.monotonic())
                    preempted.add(request.request_id)
        for request in reversed(halves):
            self.waiting.prepend_request(request)
        return preempted

    def _waits_for_half(self, request: Request) -> bool:
        """Whether the other half of this waiting request runs already; it comes before everybody else."""
        other = self._pairs.partner(request.request_id)
        return other is not None and other.status == RequestStatus.RUNNING

    def _next_blocks(self, request: Request) -> int:
        """How many more blocks a request may want in this step."""
        done = request.num_computed_tokens
        wanted = min(request.num_tokens - done, self.max_num_scheduled_tokens)
        return self._blocks_for(done + wanted) - self._blocks_for(done)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size) * self._groups

    # -- what came of it --------------------------------------------------------------------------------------

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> dict[int, EngineCoreOutputs]:
        """Take in the tokens of a step; see `Scheduler.update_from_output`."""
        pairs = self._pairs.requests()
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request, shadow in pairs:
            ended = request.is_finished(), shadow.is_finished()
            if not any(ended):
                continue
            self._pairs.forget(request.request_id)
            if not ended[1]:
                super().finish_requests(shadow.request_id, RequestStatus.FINISHED_ABORTED)
            if not ended[0]:
                logger.warning("request %s is not served: its second branch ended early", request.request_id)
                super().finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
                self._tell(outputs, request)
        for request, text in self._beside.requests():
            if request.request_id in self.requests or request.is_finished():
                self._beside.forget(request.request_id)
                if not text.is_finished():
                    super().finish_requests(text.request_id, RequestStatus.FINISHED_ABORTED)
        for of_client in outputs.values():
            of_client.outputs = [o for o in of_client.outputs if not self._is_shadow(o.request_id)]
            if of_client.finished_requests is not None:
                of_client.finished_requests = {
                    name for name in of_client.finished_requests if not self._is_shadow(name)
                }
        self._drop_shadows()
        return outputs

    @staticmethod
    def _tell(outputs: dict[int, EngineCoreOutputs], request: Request) -> None:
        """The client of an ended request learns of it."""
        told = EngineCoreOutput(
            request_id=request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason()
        )
        outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(told)


def _at_last_token(request: Request) -> bool:
    """Whether all of a request has been read but its last token."""
    return request.num_computed_tokens == request.num_tokens - 1


def _salt(request: Request, salt: str) -> None:
    """Keep the keys and values of a request apart from those of other methods."""
    if salt:
        request.cache_salt = f"{request.cache_salt or ''} {salt}"
        request.block_hashes.clear()
        request.update_block_hashes()
