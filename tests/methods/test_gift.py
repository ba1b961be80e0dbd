"""GIFT by hand: the question, its content words, gaze shifts, and the enhancement of the answer rows."""

import warnings

import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import builtin, wrap
from vlm_guard.method.question_place import answer_opening, question_range
from vlm_guard.method.state import GenerationState
from vlm_guard.methods.gift.gaze_shift import gaze_bias, gaze_saliency, question_flags, top_heads
from vlm_guard.methods.shared.question_tokens import content_flags, content_words, without_leading_space
from zoo import UNEQUAL_PROMPTS, tiny_processor

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
OPTIONS = {"content_words": "all", "saliency_layer": "0", "layers": "1-2"}


def words(text):
    return [text[start:stop] for start, stop in content_words(text)]


def test_content_words_by_rules():
    assert words("Is there a red umbrella in the image?") == ["red", "umbrella", "image"]
    assert words("What are the two men doing on the wooden bench?") == ["two", "men", "wooden", "bench"]
    assert words("Please describe this image in detail.") == ["describe", "image", "detail"]
    assert words("Is it what they are doing?") == []


@pytest.fixture(scope="module")
def tiny():
    return builtin()


def prompt_of(processor, question, count=1):
    from PIL import Image

    chat = [{"role": "user", "content": [{"type": "image"}] * count + [{"type": "text", "text": question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    pictures = [Image.new("RGB", (96, 96), (40 * index, 90, 200)) for index in range(count)]
    return processor(text=text, images=pictures, return_tensors="pt")


@pytest.mark.parametrize(
    "question", ["Is there a dog?", "Please describe this image in detail.", "A cat, or USER: a dog?"]
)
def test_the_question_is_found_in_a_real_prompt(tiny, question):
    _, processor = tiny
    ids = prompt_of(processor, question)["input_ids"][0].tolist()
    opening = answer_opening(processor)
    start, stop = question_range(ids, (processor.image_token_id,), processor.tokenizer, opening)
    assert processor.tokenizer.decode(ids[start:stop]).strip() == question


def test_content_tokens_of_a_real_prompt(tiny):
    _, processor = tiny
    ids = processor.tokenizer.encode("Is there a refrigerator in it?", add_special_tokens=False)
    flags = content_flags(ids, processor.tokenizer, content_words)
    kept = [token for token, flag in zip(ids, flags) if flag]
    assert processor.tokenizer.decode(kept).strip() == "refrigerator"
    assert content_flags(ids, processor.tokenizer, lambda text: []) == [True] * len(ids), "no content word: all count"


def test_saliency_by_hand():
    # Two heads, keys: text, three visual tokens. Head 0 rises by .1, .3 and 0 (a fall counts as 0) from row 0 to row 1,
    # head 1 by less: the better half of two heads is head 0 alone. g = (.1, .3, 0) scaled to [0, 1].
    rows = torch.tensor([[[0.6, 0.2, 0.1, 0.1], [0.3, 0.3, 0.4, 0.0]], [[0.4, 0.2, 0.2, 0.2], [0.35, 0.25, 0.2, 0.2]]])
    visual = torch.tensor([[False, True, True, True]])
    saliency = gaze_saliency(rows[None], torch.tensor([[False, True]]), visual)
    assert torch.allclose(saliency, torch.tensor([[0.0, 1 / 3, 1.0, 0.0]]), atol=1e-6)


def test_outliers_are_clipped_at_three_deviations():
    rise = torch.zeros(40)
    rise[0], rise[1] = 1.0, 0.1
    weights = torch.stack((torch.zeros(40), rise))[None, None]
    saliency = gaze_saliency(weights, torch.tensor([[False, True]]), torch.ones(1, 40, dtype=torch.bool))
    top = rise.mean() + 3 * rise.std()
    assert saliency[0, 0] == 1 and torch.allclose(saliency[0, 1], 0.1 / top, atol=1e-6)


def test_nothing_rises_nothing_is_salient():
    weights = torch.full((1, 2, 3, 4), 0.25)
    saliency = gaze_saliency(weights, torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(saliency, torch.zeros(1, 4))


def test_bias_by_hand():
    # One row, two heads. Head 0 looks at the image most (.5 against .2), head 1 at the question most (.6 against .3).
    # With alpha = ln 2 and g = (1, 0): .3 -> .6, so the image mass .5 -> .8 and r = 1.6.
    weights = torch.tensor([[[[0.3, 0.2, 0.3, 0.2]], [[0.1, 0.1, 0.6, 0.2]]]])
    visual = torch.tensor([[True, True, False, False]])
    question = torch.tensor([[False, False, True, False]])
    bias = gaze_bias(weights, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), visual, question, torch.tensor(2.0).log().item())
    expected = torch.tensor([[[[2.0, 1.0, 1.0, 1.0]], [[1.0, 1.0, 1.6, 1.0]]]]).log()
    assert torch.allclose(bias, expected, atol=1e-6)


def papers_steps(weights, saliency, visual, question, alpha):
    """Steps 1 to 4 on the last row of one prompt, with loops: [H, K] weights."""
    heads = weights.shape[0]
    image = torch.stack([weights[h][visual].sum() for h in range(heads)])
    looking = image.topk(max(1, heads // 2)).indices.tolist()
    result = weights.clone()
    for h in looking:
        for j in visual.nonzero().flatten().tolist():
            result[h, j] = weights[h, j] * torch.exp(alpha * saliency[j].double())
    r = sum(result[h][visual].sum() for h in looking) / sum(weights[h][visual].sum() for h in looking)
    asked = torch.stack([weights[h][question].sum() for h in range(heads)])
    for h in asked.topk(max(1, heads // 2)).indices.tolist():
        result[h][question] = result[h][question] * r
    return result / result.sum(-1, keepdim=True)


@pytest.mark.parametrize("layers", ["1-2", "0-1"])
def test_it_equals_the_papers_steps_on_whole_maps(zoo_model, layers):
    """Also where the saliency layer is not below the enhanced ones, so that the prompt is read ahead."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    visual = inputs["input_ids"] == zoo.image_token_id
    real = inputs["attention_mask"].bool()
    maps = []

    def look(layer, weights):
        if layer == 0:
            maps.append(weights.clone())
        return weights

    with torch.no_grad(), eager_attention(zoo.model, weights=look):
        zoo.model(**inputs)
    saliency, question = torch.zeros(visual.shape), torch.zeros_like(visual)
    for row in range(2):
        last_visual = int(visual[row].nonzero().max())
        rows = list(range(last_visual + 1, visual.shape[1]))
        question[row, rows] = real[row, rows]
        rise = (maps[0][row][:, rows] - maps[0][row][:, [i - 1 for i in rows]]).clamp_min(0)[..., visual[row]]
        heads = rise.sum((1, 2)).topk(2).indices
        g = rise[heads].mean((0, 1))
        g = g.clamp(g.mean() - 3 * g.std(), g.mean() + 3 * g.std())
        saliency[row, visual[row]] = ((g - g.min()) / (g.max() - g.min())).float()

    first, last = (int(part) for part in layers.split("-"))

    def enhance(layer, weights):
        if first <= layer <= last:
            for row in range(2):
                weights[row, :, -1] = papers_steps(weights[row, :, -1], saliency[row], visual[row], question[row], 5.0)
        return weights

    with torch.no_grad(), eager_attention(zoo.model, weights=enhance):
        expected = zoo.model(**inputs).logits
    with torch.no_grad(), wrap(zoo.model, None, "gift", **OPTIONS | {"layers": layers}):
        found = zoo.model(**inputs).logits
    with torch.no_grad():
        plain = zoo.model(**inputs).logits
    assert torch.allclose(found[:, -1], expected[:, -1], atol=3e-5)
    assert not torch.allclose(plain[:, -1], expected[:, -1], atol=1e-3)
    assert torch.equal(found[:, :-1][real[:, :-1]], plain[:, :-1][real[:, :-1]]), "only the answer rows change"


def test_salient_tokens_gain_attention(tiny):
    model, processor = tiny
    inputs = prompt_of(processor, "Is there a dog next to the chair?")
    with wrap(model, processor, "none") as guard, guard.trace("2") as plain:
        guard.generate(**inputs, max_new_tokens=1)
    with wrap(model, processor, "gift", saliency_layer="1", layers="2") as guard, guard.trace("2") as enhanced:
        guard.generate(**inputs, max_new_tokens=1)
        shared = guard.state.memory("gift", -1)
        saliency, visual = shared.saliency[0], guard.state.visual[0]
    before, after = plain.weights[2][0][0][:, visual], enhanced.weights[2][0][0][:, visual]
    looking = top_heads(before.sum(-1)[None])[0]
    best = saliency[visual].argmax()
    assert saliency[visual].min() == 0 and saliency[visual].max() == 1
    assert (after[looking] / before[looking])[:, best].min() > 1
    growth = (after / before)[looking].log()
    assert torch.allclose(
        growth - growth[:, :1], 5.0 * (saliency[visual] - saliency[visual][0]).expand_as(growth), atol=1e-3
    )


def test_generation_with_several_images_and_a_batch(zoo_model):
    zoo = zoo_model("llava")
    batch = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, tiny_processor(), "gift", saliency_layer="0", layers="1-2") as guard:
        together = guard.generate(**batch, max_new_tokens=4, do_sample=False)
        for row, prompt in enumerate(PROMPTS):
            alone = guard.generate(**zoo.make_inputs([prompt]), max_new_tokens=4, do_sample=False)
            assert torch.equal(together[row, -4:], alone[0, -4:])


def test_own_function_and_errors(zoo_model):
    zoo = zoo_model("llava")
    with pytest.raises(ValueError, match="processor"):
        wrap(zoo.model, None, "gift")
    with pytest.raises(ValueError, match="content_words"):
        wrap(zoo.model, tiny_processor(), "gift", content_words="nonsense")
    with pytest.raises(ValueError, match="one layer"):
        wrap(zoo.model, None, "gift", content_words="all", saliency_layer="0-1")
    with wrap(zoo.model, tiny_processor(), "gift", content_words=content_words) as guard:
        described = guard.methods[0].method.describe()
    assert described["options"]["content_words"] == "vlm_guard.methods.shared.question_tokens:content_words"
    inputs = zoo.make_inputs(PROMPTS[:1])
    with wrap(zoo.model, None, "gift", **OPTIONS) as guard, pytest.raises(ValueError, match="prefill_chunk_size"):
        guard.generate(**inputs, max_new_tokens=1, prefill_chunk_size=8)


class Pieces:
    """A tokenizer of nine pieces; token 0 is special."""

    all_special_ids = [0]
    pieces = ["<s>", "", "\n", "Is", " there", " a", " dog?", " ASSIST", "ANT:"]

    def decode(self, ids, **_):
        return "".join(self.pieces[token] for token in ids)


# As LLaVA's SentencePiece cuts "<image>\nIs there a dog? ASSISTANT:": an empty piece, the line break, the question,
# five pieces of opening. The release counts from the third piece behind the image to the sixth from the end.
LLAVA_IDS = [0, 99, 99, 1, 2, 3, 4, 5, 6, 7, 8]


def test_the_line_break_behind_the_image_is_no_question_token():
    start, stop = question_range(LLAVA_IDS, (99,), Pieces(), " ASSISTANT:")
    assert (start, stop) == (3, 9)
    assert without_leading_space(LLAVA_IDS, start, stop, Pieces()) == 5
    assert without_leading_space([0, 99, 1, 2], 2, 4, Pieces()) == 2, "nothing but space: the range stays"


def test_without_a_chat_template_the_opening_counts():
    ids = torch.tensor([LLAVA_IDS])
    state = GenerationState((99,), None)
    state.read(ids, None, 0, None)
    question, content, unsure = question_flags(ids, state, Pieces(), " ASSISTANT:", content_words)
    assert question[0].nonzero().flatten().tolist() == [5, 6, 7, 8] and not unsure
    assert content[0].nonzero().flatten().tolist() == [8]
    question, _, unsure = question_flags(ids, state, Pieces(), None, None)
    assert question[0].nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10] and unsure
    ended = torch.tensor([[*LLAVA_IDS[:9], 0, 7, 8]])
    state.read(ended, None, 0, None)
    question, _, unsure = question_flags(ended, state, Pieces(), None, None)
    assert question[0].nonzero().flatten().tolist() == [5, 6, 7, 8], "a special token ends the question by itself"
    assert not unsure


def test_that_the_opening_counts_is_said_once(zoo_model, tiny):
    model, processor = tiny
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with wrap(model, processor, "gift") as guard:
            guard.generate(**prompt_of(processor, "Is there a dog?"), max_new_tokens=1)
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, "gift", **OPTIONS) as guard:
        with pytest.warns(UserWarning, match="no chat template"):
            guard.generate(**inputs, max_new_tokens=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            guard.generate(**inputs, max_new_tokens=1)
