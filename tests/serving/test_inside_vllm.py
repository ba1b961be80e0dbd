"""Engines of vLLM on the built-in model, held against the same methods in transformers.

Every answer must be the same token by token, and its log-probabilities the same within the rounding of float32.
"""

import os
import time

import pytest
from PIL import Image
from served_answers import (
    ASK,
    LEADING,
    NEW_TOKENS,
    SCORED,
    InTransformers,
    assert_same,
    assert_same_mentions,
    conversation,
    grounded_in_transformers,
    lens_profiles,
    prompt_of,
)

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.eval.scenes.dataset import write_scenes
from vlm_guard.grounding import Grounding
from vlm_guard.serving.vllm import engine_options, ground
from vlm_guard.serving.vllm.declaration import ENVIRONMENT
from vlm_guard.serving.vllm.grounding.lens_keys import LENS
from vlm_guard.serving.vllm.grounding.lens_rows import kept_prompts
from vlm_guard.serving.vllm.process import ProcessGuards
from vlm_guard.serving.vllm.rows import PAIR

pytest.importorskip("vllm", reason="vLLM is not installed; docs/serving.md says how to make an environment with it")

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
GIFT = "gift:strength=20,saliency_layer=1"
VAR = "var:sink_dimensions=72,sink_threshold=4,min_visual_mass=0,min_content_share=0,move_fraction=1"
ATTENTION = [
    "pai:gain=0.5,guidance=1",
    "act:move_fraction=1,threshold=0.05",
    "zerotuning",
    "vaf",
    "vaf:form=signed",
    "spin",
    "hgai",
    VAR,
    GIFT,
    "vhr",
]
CONTRAST = [
    "pai",
    "m3id",
    "vcd",
    "icd",
    "lqcd",
    "softpag",
    "softpag:perturbation=identity",
    "m3id+zerotuning",
    f"m3id+{VAR}",
    "ritual",
]


class Engine:
    """An engine of vLLM with guards."""

    def __init__(self, pictures, methods, **options):
        from vllm import LLM

        self.pictures = pictures
        given = {"model": str(BUILTIN_DIR), "dtype": "float32", "enforce_eager": True, "max_num_seqs": 16, "seed": 0}
        given |= {"block_size": 32, "logprobs_mode": "processed_logprobs", "max_model_len": 256}
        self.llm = LLM(
            **given
            | {"limit_mm_per_prompt": {"image": 2}}
            | engine_options(methods, grounding="lens,self_check")
            | options
        )
        self.scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler

    def params(self, offer, **options):
        from vllm import SamplingParams

        given = {"temperature": 0, "max_tokens": NEW_TOKENS, "logprobs": 5}
        extra = {} if offer is None else {"vlm_guard": offer}
        return SamplingParams(**given | options, extra_args=extra)

    def prompt(self, offer, images):
        text = prompt_of(LEADING if offer == "lqcd" else ASK, len(images))
        return {"prompt": text, "multi_modal_data": {"image": images}}

    def ask(self, offers, pictures=1, **options):
        """One request for every offer and picture; the outputs in this order."""
        shown = [self.pictures[index : index + pictures] for index in range(len(self.pictures) - pictures + 1)]
        jobs = [(offer, images) for offer in offers for images in shown]
        prompts = [self.prompt(offer, images) for offer, images in jobs]
        return self.llm.generate(prompts, [self.params(offer, **options) for offer, _ in jobs], use_tqdm=False)

    def is_empty(self):
        """Whether nothing is left of any request."""
        scheduler = self.scheduler
        left = [scheduler.requests, scheduler.running, scheduler.waiting, scheduler._whole]
        for pairs in (scheduler._pairs, scheduler._beside):
            left += [pairs.held, pairs._partner, pairs._shadows, pairs._reserved]
        left.append(kept_prompts(self.llm.llm_engine.vllm_config.instance_id))
        pool = scheduler.kv_cache_manager.block_pool
        return not any(map(len, left)) and pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def assert_equal(outputs, answers):
    for output, answer in zip(outputs, answers, strict=True):
        found = output.outputs[0]
        steps = [{token: kept.logprob for token, kept in step.items()} for step in found.logprobs]
        assert_same(answer, list(found.token_ids), steps)


@pytest.fixture(scope="module", autouse=True)
def _settings(tmp_path_factory):
    kept = dict(os.environ)
    os.environ.update(SETTINGS | {"VLM_GUARD_PROFILES": lens_profiles(tmp_path_factory.mktemp("profiles"))})
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = write_scenes(tmp_path_factory.mktemp("scenes") / "s", "common", 3)
    return [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.png"))[:3]]


@pytest.fixture(scope="module")
def transformers(pictures):
    return InTransformers(pictures)


@pytest.fixture(scope="module")
def engine(_settings, pictures):
    return Engine(pictures, ";".join(ATTENTION + CONTRAST))


@pytest.fixture(scope="module")
def tight(_settings, pictures):
    """Prompts come in pieces, and the cache holds about two pairs."""
    offers = f"pai:gain=0.5,guidance=1;pai;m3id;vcd;zerotuning;{VAR}"
    return Engine(pictures, offers, max_num_batched_tokens=48, num_gpu_blocks_override=18)


@pytest.mark.parametrize("offer", ["none", *ATTENTION, *CONTRAST])
def test_a_method_answers_as_in_transformers(engine, transformers, offer):
    assert_equal(engine.ask([offer]), transformers.answers(offer))
    assert engine.is_empty()


def test_the_methods_do_something(transformers):
    plain = transformers.answers("none")
    for offer in [*ATTENTION, *CONTRAST]:
        assert offer == "lqcd" or transformers.answers(offer) != plain


def test_all_methods_in_one_batch(engine, transformers):
    offers = ["none", *ATTENTION, *CONTRAST]
    outputs = engine.ask(offers)
    assert_equal(outputs, [answer for offer in offers for answer in transformers.answers(offer)])


def test_a_request_that_names_none_is_plain(engine, transformers):
    assert_equal(engine.ask([None]), transformers.answers("none"))


@pytest.mark.parametrize(
    "offer", ["none", "pai", "act:move_fraction=1,threshold=0.05", VAR, GIFT, "vhr", "icd", "ritual"]
)
def test_several_pictures_in_a_prompt(engine, transformers, offer):
    assert_equal(engine.ask([offer], pictures=2), transformers.answers(offer, pictures=2))


def test_guarded_keys_and_values_are_not_read_by_others(engine, transformers):
    for offer in ["zerotuning", "pai:gain=0.5,guidance=1", "none", "zerotuning"]:
        engine.ask([offer])
        again = engine.ask([offer])
        assert all(output.num_cached_tokens > 0 for output in again), "the same method's are"
        assert_equal(again, transformers.answers(offer))


@pytest.mark.parametrize("offer", ["act:move_fraction=1,threshold=0.05", VAR, GIFT, "vhr"])
def test_a_method_that_must_see_the_whole_prompt_reads_nothing_from_the_cache(engine, transformers, offer):
    engine.ask([offer])
    again = engine.ask([offer])
    assert all(not output.num_cached_tokens for output in again)
    assert_equal(again, transformers.answers(offer))


@pytest.mark.parametrize("given", ["nosuch", "pai:gain=0.9", {"method": "pai"}])
def test_a_bad_request_is_refused_in_front_and_the_engine_goes_on(engine, transformers, given):
    from vllm.exceptions import VLLMValidationError

    # vLLM's front end takes a picture for known once it was shown, also by a request that it then refuses.
    engine.ask(["none"])
    with pytest.raises(VLLMValidationError, match="is not offered by this server"):
        engine.ask([given])
    assert_equal(engine.ask(["m3id"]), transformers.answers("m3id"))
    assert engine.is_empty()


@pytest.mark.parametrize("offer", ["none", "zerotuning", "m3id", "softpag"])
def test_the_same_seed_draws_the_same_answer(engine, offer):
    def drawn(seed):
        return [
            list(out.outputs[0].token_ids) for out in engine.ask([offer], temperature=1.0, seed=seed, max_tokens=12)
        ]

    first = drawn(7)
    assert drawn(7) == first and drawn(8) != first
    assert engine.is_empty()


def test_drawn_pairs_without_a_seed_stay_in_step(engine):
    outputs = engine.ask(["m3id", "vcd", "pai"], temperature=1.0, max_tokens=12, n=2)
    assert all(len(output.outputs) == 2 for output in outputs) and engine.is_empty()


def test_a_length_limit_and_stop_strings_end_both_halves(engine, transformers):
    for offer in ["none", "m3id"]:
        short = engine.ask([offer], max_tokens=3)
        assert [list(o.outputs[0].token_ids) for o in short] == [a.ids[:3] for a in transformers.answers(offer)]
        stopped = engine.ask([offer], stop=[" with"])
        assert all(o.outputs[0].finish_reason == "stop" and " with" not in o.outputs[0].text for o in stopped)
        assert engine.is_empty()


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_a_client_that_leaves_takes_both_halves_along(engine, transformers, steps):
    llm = engine.llm.llm_engine
    for number, offer in enumerate(["m3id", VAR, "vhr", "pai:gain=0.5,guidance=1", "softpag"]):
        prompt = engine.prompt(offer, engine.pictures[:1])
        inputs = engine.llm.renderer.render_cmpl([prompt])[0] if hasattr(engine.llm, "renderer") else prompt
        llm.add_request(f"leaving {number}", inputs, engine.params(offer))
    for _ in range(steps):
        llm.step()
    llm.abort_request([f"leaving {number}" for number in range(5)])
    while llm.has_unfinished_requests():
        llm.step()
    assert_equal(engine.ask(["m3id"]), transformers.answers("m3id"))
    assert engine.is_empty()


def test_a_prompt_whose_second_branch_cannot_be_made_ends_with_an_error(engine, transformers):
    """Nothing is left of it without its picture but the begin token."""
    prompt = {"prompt": "<image>", "multi_modal_data": {"image": engine.pictures[:1]}}
    (output,) = engine.llm.generate([prompt], engine.params("m3id"), use_tqdm=False)
    assert output.outputs[0].finish_reason == "error" and not output.outputs[0].token_ids
    assert_equal(engine.ask(["m3id"]), transformers.answers("m3id"))
    assert engine.is_empty()


def test_a_prompt_beside_its_text_waits_for_room_and_is_read_again_without_it(engine, transformers, monkeypatch):
    """More than fit into a step at once, all of them preempted in the middle of their answers."""
    scheduler, steps = engine.scheduler, []
    make_room = scheduler._make_room

    def preempting():
        preempted = make_room()
        steps.append(len(scheduler.running))
        if len(steps) == 12:
            for request in scheduler.running.copy():
                scheduler.running.remove(request)
                scheduler._preempt_request(request, time.monotonic())
                preempted.add(request.request_id)
        return preempted

    monkeypatch.setattr(scheduler, "_make_room", preempting)
    offers = ["vhr", "none", "vhr", "zerotuning", "vhr", "vhr", "none", "vhr"]
    outputs = engine.ask(offers)
    assert max(steps) <= 16 and len(steps) > 12
    assert_equal(outputs, [answer for offer in offers for answer in transformers.answers(offer)])
    assert engine.is_empty()


def test_prompts_in_pieces_and_a_cache_for_two_pairs(tight, transformers, monkeypatch):
    offers = ["m3id", "none", "pai", "zerotuning", VAR, "vcd", "none", "pai:gain=0.5,guidance=1", "m3id", "none", VAR]
    preempted, preempt = [], tight.scheduler._preempt_request
    monkeypatch.setattr(
        tight.scheduler, "_preempt_request", lambda request, *rest: (preempted.append(request), preempt(request, *rest))
    )
    outputs = tight.ask(offers)
    assert preempted and not any(request.sampling_params.extra_args.get(PAIR) for request in preempted)
    assert_equal(outputs, [answer for offer in offers for answer in transformers.answers(offer)])
    assert tight.is_empty()


def assert_grounded(engine, asked, settings=None):
    found = ground(engine.llm, [conversation(images, text) for images, text in asked], settings)
    for answer, expected in zip(found, grounded_in_transformers(asked, settings), strict=True):
        assert answer.text == expected.text and answer.repaired == expected.repaired
        assert_same_mentions([mention.to_dict() for mention in answer.mentions], expected.mentions)
    assert engine.is_empty()
    return found


@pytest.mark.parametrize("parts", [("lens", "self_check"), ("lens",), ("self_check",)])
def test_mentions_are_scored_as_in_transformers(engine, parts):
    asked = [([picture], text) for picture, text in zip(engine.pictures, SCORED)]
    settings = Grounding(parts=parts, repair="drop", repair_below=0.5)
    found = assert_grounded(engine, asked, settings)
    assert {mention.verdict for answer in found for mention in answer.mentions} == {"grounded", "doubtful"}
    assert any(answer.repaired.removed for answer in found)


def test_the_lens_reads_the_layers_of_the_profile(engine):
    served = ProcessGuards.of(engine.llm.llm_engine.vllm_config).served
    assert served.lens_layers == (0, 3, 6), "the last is what leaves the decoder"


def test_mentions_of_several_pictures_and_of_none(engine):
    assert_grounded(engine, [(engine.pictures[:2], SCORED[1]), (engine.pictures[1:], SCORED[2])])
    said = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "A dog."}]
    (alone,) = ground(engine.llm, [said])
    assert [mention.verdict for mention in alone.mentions] == ["unchecked"] and not alone.mentions[0].parts


def test_the_lens_reads_prompts_in_pieces_that_are_taken_off_and_come_again(tight, transformers, monkeypatch):
    """Beside guarded and plain requests, whose keys and answers stay what they are."""
    scheduler, steps = tight.scheduler, []
    schedule = scheduler.schedule

    def preempting(*args):
        steps.append(len(scheduler.running))
        if len(steps) in (2, 5):  # in the middle of prompts
            for request in scheduler.running.copy():
                scheduler.running.remove(request)
                scheduler._preempt_request(request, time.monotonic())
        return schedule(*args)

    monkeypatch.setattr(scheduler, "schedule", preempting)
    assert_equal(tight.ask(["zerotuning"]), transformers.answers("zerotuning"))
    steps.clear()
    asked = [([picture], text) for picture, text in zip(tight.pictures, SCORED)]
    assert_grounded(tight, asked)
    assert len(steps) > 5 and any(steps[number - 1] for number in (2, 5))
    assert_equal(tight.ask(["none"]), transformers.answers("none"))
    assert_grounded(tight, asked)


def test_nobody_else_may_have_hidden_states_kept(engine):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="is not an argument of requests"):
        engine.llm.generate(["a"], SamplingParams(extra_args={"vlm_guard": "none", LENS: "mine"}), use_tqdm=False)


@pytest.mark.parametrize(
    ("methods", "options", "reason"),
    [
        ("act", {"max_num_batched_tokens": 48}, "--max-num-batched-tokens"),
        ("m3id", {"max_num_seqs": 1}, "--max-num-seqs"),
        ("vhr", {"max_num_batched_tokens": 300}, "--max-num-batched-tokens"),
        ("m3id", {"scheduling_policy": "priority"}, "--scheduling-policy fcfs"),
        ("pai", {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "--scheduler-cls"),
        ("pai", {"enable_lora": True}, "LoRA"),
        ("var", {"enforce_eager": False}, "--enforce-eager"),
        ("pai", {"enforce_eager": False}, "the lens looks at the hidden states"),
        ("pai", {"worker_extension_cls": ""}, "--worker-extension-cls"),
        ("m3id", {"num_gpu_blocks_override": 12}, "two of 256 tokens"),
    ],
)
def test_settings_that_guards_cannot_go_with_are_refused_at_start(_settings, pictures, methods, options, reason):
    with pytest.raises(ValueError, match=reason):
        Engine(pictures, methods, **options)


def test_an_engine_without_declared_methods_is_refused(_settings, monkeypatch):
    options = engine_options("pai")
    monkeypatch.setenv(ENVIRONMENT, "")
    from vllm import LLM

    with pytest.raises(ValueError, match="no method is declared"):
        LLM(model=str(BUILTIN_DIR), dtype="float32", enforce_eager=True, max_model_len=256, **options)
