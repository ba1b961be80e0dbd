"""Gates: a method acts at unsure steps only, each row for itself, and a closed step is the plain model's."""

import method_cases
import pytest
import torch
from invariants import close
from transformers import LogitsProcessor

from vlm_guard import wrap
from vlm_guard.method.gate import Gate
from vlm_guard.method.hooks import hooks_of, offered_options
from vlm_guard.method.index import refuse_option
from vlm_guard.method.registry import method_class, method_names
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine

torch.set_num_threads(1)

PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=2, images=1, text_after=7, content=3)]
STEPS = 6
RECORD = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
TOKENS = [31, 62, 93, 124, 155, 36]
SEARCHING = [name for name in method_names() if method_class(name).overrides("search")]
STEPPING = [
    name
    for name in method_names()
    if name not in SEARCHING and any(hook.per_step for hook in hooks_of(method_class(name)).values())
]
ALWAYS = "max_p<=1"


class Forced(LogitsProcessor):
    """The answer is given, so that runs with other logits read the same tokens."""

    def __init__(self, prompt):
        self.prompt = prompt

    def __call__(self, input_ids, scores):
        wanted = TOKENS[(input_ids.shape[1] - self.prompt) % len(TOKENS)]
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([wanted]), 0.0)


def forced(model, inputs, **extra):
    """[B, STEPS, V] logits of the steps of the given answer."""
    with torch.no_grad():
        settings = RECORD | {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
        processors = [Forced(inputs["input_ids"].shape[1])]
        return torch.stack(model.generate(**inputs, **settings, logits_processor=processors, **extra).logits, 1)


def prompts_of(zoo):
    prompts = zoo.adapt(PROMPTS)
    return prompts if zoo.family.cache_invariant else prompts[:1]


def near(first, second):
    """As `close`, for logits among which implausible ones are lowered by ten thousand."""
    return close(first, second, second.clamp_min(-1000))


def scheduled(monkeypatch, steps):
    """Every gate is open at the distributions of these steps, counted from the first that is asked about."""
    asked = []

    def is_open(self, logits):
        asked.append(len(asked) in steps)
        return torch.full((logits.shape[0],), asked[-1])

    monkeypatch.setattr(Gate, "is_open", is_open)


@pytest.fixture(params=method_cases.FAMILIES)
def zoo(request, zoo_model):
    return zoo_model(request.param)


# -- what a gate is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHING)
def test_methods_with_a_search_take_no_gate(zoo_model, name):
    zoo = zoo_model("llava")
    with pytest.raises(ValueError, match=f"{name} decides over many steps at once"):
        wrap(zoo.model, method_cases.processor(name, "llava") or object(), name, gate=ALWAYS)


@pytest.mark.parametrize("name", sorted(set(method_names()) - set(STEPPING) - set(SEARCHING)))
def test_methods_without_steps_take_no_gate(zoo_model, name):
    zoo = zoo_model("llava")
    with pytest.raises(ValueError, match=f"{name} does nothing at single steps"):
        wrap(zoo.model, method_cases.processor(name, "llava") or object(), name, gate=ALWAYS)


@pytest.mark.parametrize("name", method_names())
def test_a_gate_is_offered_where_it_is_taken(name):
    offered = [item.name for item in offered_options(method_class(name))]
    assert ("gate" in offered) == (name in STEPPING)


@pytest.mark.parametrize("name", ["carve", "opera"])
def test_the_command_line_says_why_a_method_takes_no_gate(name):
    with pytest.raises(ValueError, match=rf"{name} takes no gate: it does nothing at single steps.*max_p<0\.5"):
        refuse_option(name, "gate", "max_p<0.5")


def test_a_gate_is_written_like_any_setting_and_stands_in_results(zoo_model):
    model = zoo_model("llava").model
    with wrap(model, None, "pai:guidance=1,gate=entropy>0.5+m3id:gate=max_p<0.7") as guard:
        told = [bound.method.describe()["options"] for bound in guard.methods]
    assert told[0]["gate"] == "entropy>0.5" and told[1]["gate"] == "max_p<0.7"
    assert "gate" not in method_class("pai")().describe()["options"]


# -- open ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPPING)
def test_a_gate_that_is_always_open_is_no_gate(zoo_model, name):
    zoo = zoo_model("llava")
    inputs, processor = zoo.make_inputs(zoo.adapt(PROMPTS)), method_cases.processor(name, "llava")
    with wrap(zoo.model, processor, name, **method_cases.options(name)):
        always_on = forced(zoo.model, inputs)
    with wrap(zoo.model, processor, name, **method_cases.options(name), gate=ALWAYS):
        gated = forced(zoo.model, inputs)
    assert near(gated, always_on)
    assert_pristine(zoo.model)


def test_so_on_every_family(zoo):
    inputs = zoo.make_inputs(prompts_of(zoo))
    with wrap(zoo.model, None, "pai", gain=0.5, layers="all", guidance=1.0):
        always_on = forced(zoo.model, inputs)
    with wrap(zoo.model, None, "pai", gain=0.5, layers="all", guidance=1.0, gate=ALWAYS):
        assert torch.equal(forced(zoo.model, inputs), always_on)
    assert_pristine(zoo.model)


# -- catching up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opens", [(0, 1, 4), (2, 5), (3,)], ids=str)
def test_a_branch_that_catches_up_has_read_what_an_always_on_branch_has(zoo_model, monkeypatch, opens):
    check_catching_up(zoo_model("llava"), monkeypatch, opens)


def test_it_does_so_on_every_family(zoo, monkeypatch):
    if zoo.family.name == "janus":
        pytest.skip("its generate drops the logits processors that give the answer here")
    check_catching_up(zoo, monkeypatch, (0, 3, 5))


def test_and_where_pictures_are_read_by_cross_attention(zoo_model, monkeypatch):
    check_catching_up(zoo_model("mllama"), monkeypatch, (1, 4))


def check_catching_up(zoo, monkeypatch, opens):
    """Closed steps are the plain model's bit for bit, open ones those of the contrast without a gate."""
    inputs = zoo.make_inputs(prompts_of(zoo))
    plain = forced(zoo.model, inputs)
    options = {"forgetting": 0.2, "plausibility": 0.0}
    with wrap(zoo.model, None, "m3id", **options):
        always_on = forced(zoo.model, inputs)
    scheduled(monkeypatch, opens)
    with wrap(zoo.model, None, "m3id", **options, gate="entropy>1"):
        gated = forced(zoo.model, inputs)
    for step in range(STEPS):
        if step in opens:
            assert near(gated[:, step], always_on[:, step]), f"open step {step}"
        else:
            assert torch.equal(gated[:, step], plain[:, step]), f"closed step {step}"
    if not any(step in opens for step in range(1, STEPS)):
        return
    assert not near(gated, plain)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("name", ["softpag", "vcd", "lqcd", "icd", "dola", "flb"])
def test_other_contrasts_are_closed_and_open_alike(zoo_model, monkeypatch, name):
    zoo = zoo_model("llava")
    inputs, processor = zoo.make_inputs(zoo.adapt(PROMPTS)), method_cases.processor(name, "llava")
    plain = forced(zoo.model, inputs)
    with wrap(zoo.model, processor, name, **method_cases.options(name)):
        always_on = forced(zoo.model, inputs)
    scheduled(monkeypatch, (1, 4))
    with wrap(zoo.model, processor, name, **method_cases.options(name), gate="entropy>1"):
        gated = forced(zoo.model, inputs)
    for step in range(STEPS):
        if step in (1, 4):
            assert near(gated[:, step], always_on[:, step]), f"open step {step}"
        else:
            assert torch.equal(gated[:, step], plain[:, step]), f"closed step {step}"


# -- closed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPPING)
def test_a_gate_that_never_opens_is_the_plain_model_bit_for_bit(zoo_model, name):
    zoo = zoo_model("llava")
    inputs, processor = zoo.make_inputs(zoo.adapt(PROMPTS)), method_cases.processor(name, "llava")
    plain = forced(zoo.model, inputs)
    options = method_cases.options(name)
    with (
        pytest.warns(UserWarning, match=f"never opens.*{name} does nothing"),
        wrap(zoo.model, processor, name, **options, gate="entropy>99") as guard,
    ):
        assert guard.describe() == "none" and torch.equal(forced(zoo.model, inputs), plain)


@pytest.mark.parametrize("name", ["pai", "var", "iri", "vhr"])
def test_closed_steps_behind_a_guarded_prompt_are_those_of_the_bare_model(zoo_model, monkeypatch, name):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS)[:1])
    options = method_cases.options(name) | ({"guidance": 1.0} if name == "pai" else {})
    with torch.no_grad(), wrap(zoo.model, None, name, **options) as guard:
        first = zoo.model(**inputs, use_cache=True)
        cache, mask, found = first.past_key_values, inputs["attention_mask"], []
        with guard.suspended():
            for token in TOKENS[: STEPS - 1]:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                column = torch.full((mask.shape[0], 1), token)
                positions = mask.sum(-1, keepdim=True) - 1
                step = zoo.model(input_ids=column, attention_mask=mask, past_key_values=cache, position_ids=positions)
                found.append(step.logits[:, -1])
    scheduled(monkeypatch, ())
    with wrap(zoo.model, None, name, **options, gate="entropy>1"):
        gated = forced(zoo.model, inputs)
    for number, wanted in enumerate(found, 1):
        assert torch.equal(gated[:, number], wanted), f"step {number}"


# -- rows ------------------------------------------------------------------------------------------------------

ROWS = ["pai", "var", "m3id", "vcd", "iri", "vhr", "dola", "pai+m3id", "softpag"]


def middle(zoo, inputs):
    """A gate that is open at about half of the steps."""
    logits = forced(zoo.model, inputs)
    entropy = torch.distributions.Categorical(logits=logits.float()).entropy()
    # In the widest gap near the middle, so that rounding decides nothing.
    ordered = entropy.flatten().sort().values
    low = len(ordered) // 3
    gaps = ordered[low + 1 : 2 * low + 1] - ordered[low : 2 * low]
    place = low + int(gaps.argmax())
    return f"entropy>{float((ordered[place] + ordered[place + 1]) / 2):.7f}"


def gated_options(name, gate):
    parts = name.split("+")
    if len(parts) == 1:
        options = method_cases.options(name) | {"gate": gate}
        return options | ({"guidance": 1.0} if name == "pai" else {})
    own = {f"{part}.{key}": value for part in parts for key, value in method_cases.options(part).items()}
    return own | {f"{part}.gate": gate for part in parts} | {"pai.guidance": 1.0}


@pytest.mark.parametrize("name", ROWS)
def test_a_padded_batch_is_each_row_alone(zoo_model, name):
    zoo = zoo_model("llava")
    prompts = zoo.adapt(PROMPTS)
    inputs = zoo.make_inputs(prompts)
    options = gated_options(name, middle(zoo, inputs))
    plain = forced(zoo.model, inputs)
    with wrap(zoo.model, None, name, **options):
        together = forced(zoo.model, inputs)
        for row, prompt in enumerate(prompts):
            alone = forced(zoo.model, zoo.make_inputs([prompt]))
            assert near(together[row], alone[0]), f"row {row}"
    assert not near(together, plain), "the gate must open somewhere"


@pytest.mark.parametrize("name", ["pai", "m3id", "iri", "vhr", "pai+m3id"])
def test_without_a_cache_it_is_the_same(zoo_model, name):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with wrap(zoo.model, None, name, **gated_options(name, middle(zoo, inputs))):
        assert near(forced(zoo.model, inputs, use_cache=False), forced(zoo.model, inputs))


@pytest.mark.parametrize("name", ["pai", "m3id", "pai+m3id"])
def test_what_is_known_of_beams_moves_with_them(zoo_model, name):
    zoo = zoo_model("llava")
    prompt = zoo.adapt(PROMPTS)[:1]
    inputs = zoo.make_inputs(prompt)
    options = gated_options(name, middle(zoo, inputs))
    beams = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "min_new_tokens": 4, "length_penalty": 0.0}
    settings = beams | {"do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad(), wrap(zoo.model, None, name, **options) as guard:
        found = guard.generate(**inputs, **settings)
        length = inputs["input_ids"].shape[1]
        for tokens, score in zip(found.sequences[:, length:], found.sequences_scores):
            again = guard.generate(
                **inputs, **RECORD, max_new_tokens=4, min_new_tokens=4, logits_processor=[Given(length, tokens)]
            )
            logits = torch.stack(again.logits, 1)[0].clone()
            logits[:, zoo.model.generation_config.eos_token_id or []] = -torch.inf
            chosen = logits.log_softmax(-1)[range(4), tokens].sum()
            assert abs(float(chosen - score)) < 1e-3 * max(1.0, abs(float(score)))


class Given(LogitsProcessor):
    """These tokens are the answer."""

    def __init__(self, prompt, tokens):
        self.prompt, self.tokens = prompt, tokens

    def __call__(self, input_ids, scores):
        wanted = self.tokens[input_ids.shape[1] - self.prompt]
        return torch.full_like(scores, -1e9).index_fill(1, wanted[None], 0.0)


def test_beams_without_a_cache_are_refused(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with (
        torch.no_grad(),
        wrap(zoo.model, None, "pai", guidance=1.0, gate="entropy>0") as guard,
        pytest.raises(ValueError, match="cannot follow beams without a cache"),
    ):
        guard.generate(**inputs, num_beams=4, max_new_tokens=8, use_cache=False, do_sample=False)
    assert_pristine(zoo.model)


def test_several_tokens_of_an_answer_at_once_are_refused(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS)[:1])
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with torch.no_grad(), wrap(zoo.model, None, "pai", guidance=1.0, gate="entropy>0"):
        assert zoo.model(**inputs).logits.isfinite().all(), "without labels all is prompt"
        with pytest.raises(ValueError, match="decides from one token to the next"):
            zoo.model(**inputs, labels=labels)


def test_passes_outside_of_generate_are_gated_too(zoo_model):
    """A contrast by the very distributions that it changes, a decoding loop of one's own like `generate`."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS)[:1])
    gate = middle(zoo, inputs)
    for name in ("m3id", "pai"):
        with torch.no_grad(), wrap(zoo.model, None, name, **gated_options(name, gate)):
            wanted = forced(zoo.model, inputs)
            output, mask = zoo.model(**inputs, use_cache=True, logits_to_keep=1), inputs["attention_mask"]
            found = [output.logits[:, -1]]
            for token in TOKENS[: STEPS - 1]:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                column = torch.full((mask.shape[0], 1), token)
                positions = mask.sum(-1, keepdim=True) - 1
                cache = output.past_key_values
                output = zoo.model(input_ids=column, attention_mask=mask, past_key_values=cache, position_ids=positions)
                found.append(output.logits[:, -1])
        assert near(torch.stack(found, 1), wanted), name


def test_a_trace_shows_the_attention_of_each_row(zoo_model):
    zoo = zoo_model("llava")
    prompts = zoo.adapt(PROMPTS)
    inputs = zoo.make_inputs(prompts)
    options = gated_options("pai", middle(zoo, inputs))
    with wrap(zoo.model, None, "pai", **options) as guard:
        with guard.trace() as together:
            forced(zoo.model, inputs)
        visual = guard.state.visual
        with guard.trace() as alone:
            forced(zoo.model, zoo.make_inputs(prompts[:1]))
        own = guard.state.visual
    assert torch.allclose(together.visual_share(visual)[:, :, 0], alone.visual_share(own)[:, :, 0], atol=1e-5)


def test_compiled_steps_are_none_with_a_gate(zoo_model):
    zoo = zoo_model("llava")
    with (
        wrap(zoo.model, None, "pai", guidance=1.0, gate="entropy>0.1"),
        pytest.warns(UserWarning, match="pai with a gate cannot run in a compiled decode step"),
    ):
        zoo.model.get_compiled_call(None)
