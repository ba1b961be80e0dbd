"""Rows over a paged cache: in pieces or at once, alone or together, and as the guard in transformers has them."""

import pytest
import torch

from vlm_guard.methods.vhr.method import vision_aware_heads
from vlm_guard.runtime.attention import attend
from vlm_guard.serving.vllm.attention.block_attention import BlockAttention
from vlm_guard.serving.vllm.attention.observed_rows import ObservedRows
from vlm_guard.serving.vllm.attention.paged_attention import FinishedInput, LayerCall
from vlm_guard.serving.vllm.attention.step_plan import StepPlanner, StepRows
from vlm_guard.serving.vllm.rows import BESIDE, SHADOW, GuardedRequest, RowTable

HEADS, GROUPS, DIM, BLOCK, LAYER, WIDTH = 8, 4, 32, 4, 3, 192
IMAGE = 4
OFFERS = [
    "pai:gain=0.5,guidance=1",
    "zerotuning:factor=0.5",
    "act:move_fraction=1,threshold=0.02",
    "act:move_fraction=1,threshold=0.02,prompt_rows=answer",
    "softpag",
    "softpag:scope=answer,perturbation=identity",
    "spin",
    "hgai:layers=all",
    "vaf:layers=all",
    "vaf:layers=all,form=signed",
    "var:sink_dimensions=72,sink_threshold=1,min_visual_mass=0,min_content_share=0,move_fraction=1",
    "zerotuning:factor=0.5+pai:pai.gain=0.5,pai.guidance=1",
    "hgai:hgai.layers=all+spin+zerotuning:zerotuning.factor=0.5",
]


class Layout:
    """This test's: [blocks, 2, G, block size, D]."""

    part = BLOCK

    def places(self, blocks, length):
        return blocks[:, : -(-length // BLOCK)]

    def read(self, cache, blocks):
        rows, count = blocks.shape
        found = cache[blocks.flatten()].view(rows, count, 2, GROUPS, BLOCK, DIM)
        parts = found.permute(2, 0, 3, 1, 4, 5).reshape(2, rows, GROUPS, count * BLOCK, DIM)
        return parts[0], parts[1]


def plain_attention(query, key, value):
    """[Q, H, D] causal attention of the last Q of K tokens."""
    count, keys = query.shape[0], key.shape[0]
    mask = torch.arange(keys) <= torch.arange(keys - count, keys)[:, None]
    parts = (query, key.repeat_interleave(HEADS // GROUPS, 1), value.repeat_interleave(HEADS // GROUPS, 1))
    parts = (part.transpose(0, 1)[None] for part in parts)
    return torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)[0].transpose(0, 1)


class Sequence:
    """One request with its queries, keys and values, and its blocks in a cache."""

    def __init__(self, seed, offer, before, pictures, after, answer, side):
        generator = torch.Generator().manual_seed(seed)
        self.prompt = [1, *[7] * before, *[IMAGE] * pictures, *[9] * after]
        self.total = len(self.prompt) + answer
        self.query = torch.randn(self.total, HEADS, DIM, generator=generator) * 2
        self.key, self.value = torch.randn(2, self.total, GROUPS, DIM, generator=generator)
        self.hidden = torch.randn(self.total, WIDTH, generator=generator)
        extra = {"vlm_guard": offer, "vlm_guard_side": side}
        self.request = GuardedRequest(extra, self.prompt, [])


def run(sequences, served, steps, softcap=None):
    """The outputs [total, H, D] of every sequence, read in `steps`: for each step how many rows of each."""
    table, done = RowTable(), [0] * len(sequences)
    table.requests.update(enumerate(item.request for item in sequences))
    planner = StepPlanner(served, table, Layout())
    wide = -(-max(item.total for item in sequences) // BLOCK)
    cache = torch.zeros(1 + wide * len(sequences), 2, GROUPS, BLOCK, DIM)
    blocks = 1 + torch.randperm(wide * len(sequences)).view(len(sequences), wide)
    outputs = [[] for _ in sequences]
    for counts in steps:
        parts = [slice(at, at + count) for at, count in zip(done, counts)]
        for row, (item, part) in enumerate(zip(sequences, parts)):
            for place in range(part.start, part.stop):
                block, inside = blocks[row, place // BLOCK], place % BLOCK
                cache[block, :, :, inside] = torch.stack((item.key[place], item.value[place]))
        done = [part.stop for part in parts]
        starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
        plan = planner.plan(StepRows(starts=starts, lengths=done, block_table=blocks, block_size=BLOCK))
        output = torch.cat(
            [plain_attention(i.query[p], i.key[: p.stop], i.value[: p.stop]) for i, p in zip(sequences, parts)]
        )
        query, key, value, hidden = (
            torch.cat([getattr(i, n)[p] for i, p in zip(sequences, parts)]) for n in ("query", "key", "value", "hidden")
        )
        call = LayerCall(
            index=LAYER,
            query=query,
            key=key,
            value=value,
            output=output,
            cache=cache,
            attention=BlockAttention(Layout(), HEADS, compiles=False),
            scaling=DIM**-0.5,
            softcap=softcap,
        )
        if plan is not None:
            for found in plan.observed:
                found.show(LAYER, hidden.__getitem__)
            call.edit(plan)
        for row, found in enumerate(output.split(list(counts))):
            outputs[row].append(found)
    return [torch.cat(parts) for parts in outputs]


def sequences_of(offer, answer=3):
    side = "negative" if offer.startswith("softpag") else "positive"
    shapes = [(2, 9, 5), (0, 6, 11), (4, 12, 2)]
    return [Sequence(seed, offer, *shape, answer, side) for seed, shape in enumerate(shapes)]


def in_transformers(item, served, softcap=None):
    """The same rows, each step through the guard's own attention over plain tensors."""
    guard = served.asked(item.request.extra_args)
    layer = guard.layers[item.request.side][LAYER]
    request = GuardedRequest(item.request.extra_args, item.prompt, [])
    state, outputs, begin = request.begin(guard.visual_token_ids), [], 0
    layer.module.num_key_value_groups = HEADS // GROUPS
    for count in [len(item.prompt), *[1] * (item.total - len(item.prompt))]:
        state.read(torch.zeros(1, count, dtype=torch.long), None, begin, None)
        stop = begin + count
        if state.reading:
            rows = slice(begin, stop)
            for bound in guard.observers[item.request.side].get(LAYER, ()):
                ObservedRows({LAYER: (bound,)}, state, rows).show(LAYER, item.hidden.__getitem__)
        query = item.query[begin:stop].transpose(0, 1)[None]
        key, value = (part[:stop].transpose(0, 1)[None] for part in (item.key, item.value))
        plain = plain_attention(item.query[begin:stop], item.key[:stop], item.value[:stop])[None]
        kwargs = {"scaling": DIM**-0.5, "softcap": softcap}
        given = FinishedInput("sdpa", layer.module, query, key, value, None, kwargs, plain)
        outputs.append(attend(layer.slot, state, given)[0][0])
        begin = stop
    return torch.cat(outputs)


@pytest.mark.parametrize("offer", OFFERS)
def test_decoded_together_and_alone_equal_the_guard_in_transformers(served, offer):
    guards = served(offer)
    together = sequences_of(offer)
    prompts = [len(item.prompt) for item in together]
    found = run(together, guards, [prompts, *[[1] * 3] * 3])
    for item, alone, output in zip(together, sequences_of(offer), found):
        torch.testing.assert_close(run([alone], guards, [[len(item.prompt)], [1], [1], [1]])[0], output)
        torch.testing.assert_close(in_transformers(item, guards), output)
        assert not torch.allclose(plain_attention(item.query, item.key, item.value), output), "nothing was edited"


@pytest.mark.parametrize("offer", [offer for offer in OFFERS if not offer.startswith("act")])
def test_a_prompt_in_pieces_equals_one_at_once(served, offer):
    guards = served(offer)
    whole = run(sequences_of(offer), guards, [[17, 18, 19], *[[1] * 3] * 3])
    pieces = run(sequences_of(offer), guards, [[5, 1, 8], [7, 12, 0], [5, 0, 10], [0, 5, 1], *[[1] * 3] * 3])
    for first, second in zip(whole, pieces):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("offer", ["spin", "hgai:layers=all", "zerotuning:factor=0.5"])
def test_with_capped_scores_too(served, offer):
    guards, together = served(offer), sequences_of(offer)
    for item, output in zip(together, run(together, guards, [[17, 18, 19], *[[1] * 3] * 3], softcap=3.0)):
        torch.testing.assert_close(in_transformers(item, guards, softcap=3.0), output)


@pytest.mark.parametrize("offer", ["spin", "hgai:layers=all"])
def test_a_method_is_asked_once_a_step_about_all_requests_and_copies_no_keys(served, offer, monkeypatch):
    guards, items = served(offer), sequences_of(offer)
    asked, layer = [], guards.asked(items[0].request.extra_args).layers["positive"][LAYER]
    method = type(layer.joint[0].method)
    original = method.edit_attention

    def edit_attention(self, call):
        edit = original(self, call)
        if not call.state.reading:
            asked.append((call.query.shape[0], "_read" in vars(call.held)))
        return edit

    monkeypatch.setattr(method, "edit_attention", edit_attention)
    run(items, guards, [[17, 18, 19], *[[1] * 3] * 2])
    assert asked == [(3, False)] * 2


def test_rows_of_other_requests_are_left_as_they_are(served):
    guards = served("pai:gain=0.5,guidance=1")
    items = sequences_of("pai:gain=0.5,guidance=1")
    items[1].request = GuardedRequest({"vlm_guard": "none"}, items[1].prompt, [])
    found = run(items, guards, [[17, 18, 19], [1, 1, 1]])
    given = items[1]
    plain = torch.cat(
        (
            plain_attention(given.query[:18], given.key[:18], given.value[:18]),
            plain_attention(given.query[18:19], given.key[:19], given.value[:19]),
        )
    )
    assert torch.equal(found[1], plain)


def test_a_prompt_without_a_picture_is_left_as_it_is(served):
    offer = "zerotuning:factor=0.5"
    item = Sequence(0, offer, 8, 0, 4, 2, "positive")
    (found,) = run([item], served(offer), [[13], [1], [1]])
    torch.testing.assert_close(found, plain_attention(item.query, item.key, item.value))


@pytest.mark.parametrize("offer", [offer for offer in OFFERS if offer.startswith(("act", "var", "spin"))])
def test_a_request_that_is_read_again_forgets_what_it_had(served, offer):
    """Preempted after two tokens of its answer, it reads prompt and answer again."""
    (item, *_), guards = sequences_of(offer), served(offer)
    (first,) = run([item], guards, [[17], [1], [1], [1]])
    known = item.request.state
    (second,) = run([item], guards, [[19], [1]])
    assert item.request.state is not known
    torch.testing.assert_close(first[19:], second[19:])


def test_heads_are_chosen_from_a_prompt_and_its_text_in_one_step_and_kept(served):
    """Rows of both are scaled by what their last rows say, rows of others are not, and a second reading asks nobody."""
    offer, guards = "vhr:layers=all", served("vhr:layers=all")
    image, alone = Sequence(0, offer, 2, 9, 5, 2, "positive"), Sequence(2, "none", 4, 12, 2, 2, "positive")
    text = Sequence(1, offer, 2, 0, 5, 0, "positive")
    image.request.extra_args.update({BESIDE: "one"})
    text.request.extra_args.update({BESIDE: "one", SHADOW: True})
    found = run([alone, image, text], guards, [[19, 17, 8], [1, 1, 0], [1, 1, 0]])
    plain = [plain_attention(item.query, item.key, item.value) for item in (image, text)]
    _, chosen = vision_aware_heads(plain[0][16:17], plain[1][-1:])
    scale = torch.where(chosen, 2.0, 1.0)[0, :, None]
    assert 0 < int(chosen.sum()) < HEADS
    torch.testing.assert_close(found[1], plain[0] * scale)
    torch.testing.assert_close(found[2], plain[1] * scale)
    torch.testing.assert_close(found[0], plain_attention(alone.query, alone.key, alone.value))
    (again,) = run([image], guards, [[18], [1]])
    torch.testing.assert_close(again, found[1])


def test_a_prompt_without_its_text_beside_it_is_never_read(served):
    image = Sequence(0, "vhr:layers=all", 2, 9, 5, 2, "positive")
    image.request.extra_args.update({BESIDE: "one"})
    with pytest.raises(RuntimeError, match="without its text"):
        run([image], served("vhr:layers=all"), [[17]])


def test_families_without_placeholders_in_an_ordinary_prompt_are_refused():
    from vlm_guard.serving.vllm.declaration import Declaration
    from vlm_guard.serving.vllm.served_guards import ServedGuards
    from zoo import build

    with pytest.raises(ValueError, match="mllama models cannot be served with guards"):
        ServedGuards(Declaration.read("m3id"), build("mllama").model, None)


def test_what_a_method_lacks_of_the_model_is_said(served):
    with pytest.raises(ValueError, match="head"):
        served("act:heads=99:0")
    with pytest.raises(
        ValueError, match="gift cannot be served inside vLLM with these settings: its saliency layer 5 is"
    ):
        served("gift:saliency_layer=last:1")
    with pytest.raises(ValueError, match="approximation='parallel' reads the prompt beforehand; approximation='none'"):
        served("vhr:approximation=parallel")
