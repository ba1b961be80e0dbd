"""OPERA against a literal search that recomputes everything for every candidate, and what it refuses."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import wrap
from vlm_guard.contrast.candidate_passes import BeamPasses
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.methods.opera.beam_search import OverTrustSearch
from vlm_guard.methods.opera.method import OPERA
from vlm_guard.methods.opera.over_trust import candidate_rows, trust_of
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine

torch.set_num_threads(1)
PROMPT = Prompt(text_before=3, images=1, text_after=4)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=5, images=0, text_after=12, content=2)]


def test_a_candidates_row_ends_with_itself():
    rows = torch.tensor([[[0.2, 0.4, 0.5, 0.0], [0.1, 0.1, 0.0, 0.2]]])
    found = candidate_rows(rows, 2)
    assert torch.allclose(found, torch.tensor([[[0.2, 0.4, 0.5], [0.1, 0.1, 0.2]]]) / torch.tensor([[[1.1], [0.4]]]))


@pytest.mark.parametrize("length", [3, 12])
def test_columns_are_the_published_products(length):
    """Row by row what nested loops over the whole triangle give, in the logarithm and taken back."""
    torch.manual_seed(length)
    prompt, scale = 5, 7.0
    visual = torch.tensor([False, True, True, False, False])
    weights = torch.rand(length, prompt + length).tril(prompt)
    weights = weights / weights.sum(-1, keepdim=True)
    columns = torch.zeros(1, 0)
    for row in range(length):
        trust = trust_of(columns, weights[row, : prompt + row + 1].view(1, 1, -1), visual, scale)
        columns = trust.columns[:, 0]
    products = []
    for j in range(length):
        product = 1.0
        for i in range(j, length):
            product *= scale * float(weights[i, prompt + j])
        products.append(product)
    assert columns[0].exp().tolist() == pytest.approx(products, rel=1e-3)
    assert int(trust.strongest) == products.index(max(products))
    picture = float(weights[-1, 1] + weights[-1, 2])
    expected = -picture if length <= 10 else 1e-7 * max(products)
    assert float(trust.penalty()) == pytest.approx(expected, rel=1e-3)


def test_a_penalty_that_overflows_half_precision_stays_a_number():
    rows = torch.full((1, 1, 40), 0.9)
    trust = trust_of(torch.full((1, 39), 30.0), rows, torch.zeros(0, dtype=torch.bool), 50.0)
    assert 0 < float(trust.penalty()) <= 1e4


@dataclass
class Beam:
    tokens: list
    score: float
    strongest: list


def literal(zoo, inputs, method, steps):
    """(answer, number of returns) of the search as the paper's code goes, with one whole pass per candidate."""
    prompt, last = inputs["input_ids"], describe_architecture(zoo.model).layers[-1].index
    length, visual = prompt.shape[1], (prompt[0] == zoo.image_token_id)
    kept = {}

    def look(layer, weights):
        if layer == last:
            kept["weights"] = weights
        return weights

    def read(tokens):
        ids = torch.cat((prompt, torch.tensor([tokens], dtype=torch.long)), 1)
        others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in others:
            others["mm_token_type_ids"] = torch.nn.functional.pad(others["mm_token_type_ids"], (0, len(tokens)))
        with eager_attention(zoo.model, weights=look), torch.no_grad():
            logits = zoo.model(input_ids=ids, attention_mask=torch.ones_like(ids), **others).logits[0, -1].double()
        logits[zoo.model.generation_config.suppress_tokens] = float("-inf")
        attention = kept["weights"][0].amax(0)
        return logits, attention / attention.sum(-1, keepdim=True)

    def penalty_of(attention):
        """(penalty, strongest column) of the last row."""
        block = method.scale * attention[length:, length:]
        columns = [math.prod(float(block[i, j]) for i in range(j, len(block))) for j in range(len(block))]
        strongest = columns.index(max(columns))
        share = float(attention[-1, :length][visual].sum())
        return (-share if len(block) <= 10 else 1e-7 * max(columns)), strongest

    def mode(values):
        return min(values, key=lambda value: (-values.count(value), value))

    beams, visited, returns, rejected, finished = [Beam([], 0.0, [])], {}, {}, {}, []
    while len(beams[0].tokens) < steps:
        t = len(beams[0].tokens)
        visited[t] = [replace(beam) for beam in beams]
        offers, places = [], []
        for beam in beams:
            logits, _ = read(beam.tokens)
            values, tokens = logits.topk(method.candidates)
            penalties = [penalty_of(read([*beam.tokens, token])[1]) for token in tokens.tolist()]
            places.append(mode([strongest for _, strongest in penalties]))
            corrected = values - method.strength * torch.tensor([penalty for penalty, _ in penalties]).double()
            for token, share in zip(tokens.tolist(), corrected.log_softmax(-1).tolist()):
                offers.append((beam.score + share, beam, token, [*beam.strongest, places[-1]]))
        common = mode(places)
        counts = [[*beam.strongest, place].count(common) for beam, place in zip(beams, places)]
        place = common + 1
        if common >= 10 and min(counts) > method.threshold:
            place -= returns.get(place, 0) >= method.candidates
            if returns.get(place, 0) < method.candidates:
                returns[place] = returns.get(place, 0) + 1
                rejected.setdefault(place, set()).update(beam.tokens[place] for beam in beams if t > place)
                offers = []
                for beam in visited[place]:
                    logits, _ = read(beam.tokens)
                    logits[sorted(rejected[place])] = float("-inf")
                    shares = logits.log_softmax(-1)
                    offers += [(beam.score + float(s), beam, y, beam.strongest) for y, s in enumerate(shares)]
        offers.sort(key=lambda offer: -offer[0])
        beams = [Beam([*beam.tokens, token], score, past) for score, beam, token, past in offers[: method.beams]]
        finished = [(beam.score / len(beam.tokens), beam.tokens) for beam in beams]
    return max(finished)[1], sum(returns.values())


@pytest.mark.parametrize(("family", "scale", "steps"), [("llava", 50.0, 5), ("llava", 12.0, 17), ("qwen2_vl", 50.0, 4)])
def test_it_equals_a_literal_search(zoo_model, monkeypatch, family, scale, steps):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs([PROMPT])
    method = OPERA(beams=3, candidates=4, threshold=1, scale=scale)
    expected, returns = literal(zoo, inputs, method, steps)
    made, back = [], OverTrustSearch._return
    monkeypatch.setattr(OverTrustSearch, "_return", lambda *given: made.append(given[2]) or back(*given))
    with wrap(zoo.model, None, method) as guard:
        found = guard.generate(**inputs, max_new_tokens=steps)
    assert found[0, inputs["input_ids"].shape[1] :].tolist() == expected
    assert len(made) == returns
    if steps > 12:
        assert returns, "the settings of this test must make the search go back"


# Plain decoders of each way to make positions, and one that generates from embeddings.
FAMILIES = ["llava", "qwen2_vl", "qwen2_5_omni_thinker", "internvl", "idefics3", "chameleon", "instructblip"]


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_get_the_logits_they_have_alone(zoo_model, monkeypatch, family):
    """Every candidate of every step against a whole pass over the same tokens, row by row of a padded batch."""
    zoo = zoo_model(family)
    prompts = zoo.adapt([PROMPT, replace(PROMPT, text_before=6, content=4)])
    inputs = zoo.make_inputs(prompts)
    tried, candidates = [], BeamPasses.candidates

    def remember(self, tokens):
        logits = candidates(self, tokens)
        tried.append((self._row.start, self.length - self.prompt_length, tokens, logits))
        return logits

    monkeypatch.setattr(BeamPasses, "candidates", remember)
    with wrap(zoo.model, None, OPERA(beams=1, candidates=3, strength=1e-9)) as guard:
        answers = guard.generate(**inputs, max_new_tokens=3)[:, -3:]
    assert_pristine(zoo.model)
    assert len(tried) == 6
    for row, step, tokens, logits in tried:
        written = torch.cat((answers[row : row + 1, :step].expand(3, -1), tokens.T), 1)
        for place in range(3):
            assert torch.allclose(whole_pass(zoo, prompts[row], written[place]), logits[0, place], atol=3e-4)


def whole_pass(zoo, prompt, tokens):
    """[V] logits behind a prompt and the tokens [t]."""
    inputs = zoo.make_inputs([prompt])
    length = inputs["input_ids"].shape[1]
    for name, fill in (("input_ids", 0), ("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(tokens)), value=fill)
    inputs["input_ids"][0, length:] = tokens
    with torch.no_grad():
        return zoo.model(**inputs).logits[0, -1]


def test_without_penalty_it_is_beam_search(zoo_model):
    """All tokens are candidates, so that probabilities are those of the whole vocabulary."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([PROMPT])
    vocabulary = zoo.model.config.text_config.vocab_size
    # Suppressed tokens would take their probability with them in one search and not in the other.
    config = deepcopy(zoo.model.generation_config)
    config.suppress_tokens, config.max_new_tokens = None, 6
    beams = deepcopy(config)
    beams.num_beams = 3
    expected = zoo.model.generate(**inputs, generation_config=beams)
    with wrap(zoo.model, None, OPERA(beams=3, candidates=vocabulary, strength=1e-9)) as guard:
        assert torch.equal(guard.generate(**inputs, generation_config=config), expected)


def test_finished_beams_end_and_rows_of_a_batch_are_padded(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    method = OPERA(beams=3, candidates=4)
    with wrap(zoo.model, None, method) as guard:
        free = guard.generate(**inputs, max_new_tokens=6)[:, -6:]
        settings = {"max_new_tokens": 6, "eos_token_id": [int(free[0, 2]), int(free[1, 4])], "early_stopping": True}
        together = guard.generate(**inputs, **settings)
        for row, prompt in enumerate(PROMPTS):
            alone = guard.generate(**zoo.make_inputs([prompt]), **settings)[0]
            answer = alone[-(len(alone) - zoo.make_inputs([prompt])["input_ids"].shape[1]) :].tolist()
            found = together[row, inputs["input_ids"].shape[1] :].tolist()
            assert found[: len(answer)] == answer and set(found[len(answer) :]) <= {0}
    greedy = zoo.model.generate(**zoo.make_inputs([PROMPTS[2]]), max_new_tokens=6)[0, -6:]
    assert torch.equal(free[2], greedy), "a prompt without a picture gets the model's own answer"
    assert_pristine(zoo.model)


@pytest.mark.parametrize("methods", ["vaf+opera", "spin+opera"])
def test_methods_of_attention_act_in_its_passes(zoo_model, methods):
    zoo = zoo_model("llava")
    options = {"opera.beams": 3, "opera.candidates": 4}
    options |= {"vaf.layers": "all", "vaf.enhance": 2.0} if methods.startswith("vaf") else {"spin.keep": 0.5}
    inputs = zoo.make_inputs([PROMPT])
    with wrap(zoo.model, None, "opera", beams=3, candidates=4) as guard:
        alone = guard.generate(**inputs, max_new_tokens=6)
    with wrap(zoo.model, None, methods, **options) as guard:
        both = guard.generate(**inputs, max_new_tokens=6)
        assert torch.equal(guard.generate(**inputs, max_new_tokens=6), both)
        if methods.startswith("spin"):
            with pytest.raises(ValueError, match="opera answers the prompts of a batch one after the other, and spin"):
                guard.generate(**zoo.make_inputs(PROMPTS), max_new_tokens=2)
    assert not torch.equal(alone, both)
    assert_pristine(zoo.model)


def test_the_fast_variant_is_what_the_readme_names():
    fast = OPERA(variant="fast")
    assert (fast.candidates, fast.threshold, fast.beams) == (1, 25, 5)
    assert OPERA(variant="fast", candidates=3).candidates == 3
    assert fast.describe()["sources"] == {"variant": "given", "candidates": "variant fast", "threshold": "variant fast"}


def test_the_fast_variant_answers_greedily_until_it_goes_back(zoo_model):
    """One candidate a beam: what the model would say, whatever the penalty, as the release does."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([PROMPT])
    with wrap(zoo.model, None, "opera:variant=fast") as guard:
        assert torch.equal(guard.generate(**inputs, max_new_tokens=6), zoo.model.generate(**inputs, max_new_tokens=6))


class Streamer:
    """Keeps what it is given."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens.append(value.flatten())

    def end(self):
        self.ended = True


def test_streams_and_scores(zoo_model):
    zoo = zoo_model("llava")
    inputs, streamer = zoo.make_inputs([PROMPT]), Streamer()
    with wrap(zoo.model, None, "opera", beams=2, candidates=3) as guard:
        settings = {"streamer": streamer, "return_dict_in_generate": True, "output_logits": True}
        out = guard.generate(**inputs, max_new_tokens=4, **settings)
        with guard.trace(), pytest.raises(ValueError, match="opera tries tokens that it does not take"):
            guard.generate(**inputs, max_new_tokens=2)
    assert torch.equal(torch.cat(streamer.tokens), out.sequences[0]) and streamer.ended
    for step, logits in enumerate(out.logits):
        assert torch.allclose(
            logits[0], whole_pass(zoo, PROMPT, out.sequences[0, -4 : step - 4 or None][:step]), atol=2e-4
        )
    assert out.sequences_scores.shape == (1,) and float(out.sequences_scores) < 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 3}, "opera is a beam search of its own with opera:beams="),
        ({"do_sample": True}, "opera is a beam search of its own"),
        ({"num_beams": 3, "num_return_sequences": 2}, "opera is a beam search of its own"),
        (
            {"output_scores": True, "return_dict_in_generate": True},
            "opera returns sequences, their scores and logits only",
        ),
    ],
)
def test_what_a_search_of_its_own_cannot_do_is_refused(zoo_model, settings, message):
    zoo = zoo_model("llava")
    with wrap(zoo.model, None, "opera") as guard, pytest.raises(ValueError, match=message):
        guard.generate(**zoo.make_inputs([PROMPT]), max_new_tokens=2, **settings)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5", "llama4"])
def test_decoders_with_windows_or_states_are_refused(zoo_model, family):
    zoo = zoo_model(family)
    with (
        wrap(zoo.model, None, "opera") as guard,
        pytest.raises(ValueError, match="opera tries several next tokens in one pass"),
    ):
        guard.generate(**zoo.make_inputs([PROMPT]), max_new_tokens=2)
    assert_pristine(zoo.model)


def test_one_forward_pass_is_no_search(zoo_model):
    zoo = zoo_model("llava")
    with wrap(zoo.model, None, "opera"), pytest.raises(ValueError, match="opera is a search, which one forward pass"):
        zoo.model(**zoo.make_inputs([PROMPT]))
    assert_pristine(zoo.model)
