"""What goes in and out of a guarded `generate` besides tokens: streamers, processors, criteria, scores, pipelines."""

import threading

import method_cases
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from vlm_guard import wrap
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)

OPTIONS = {"var": method_cases.options("var"), "m3id": {"forgetting": 0.4, "plausibility": 0.0}}
PROMPTS = [Prompt(text_before=3, text_after=4, content=0), Prompt(text_before=9, images=2, text_after=6, content=1)]
STEPS = 5

every_kind = pytest.mark.parametrize("method", OPTIONS)


@pytest.fixture
def llava(zoo_model):
    zoo = zoo_model("llava")
    yield zoo
    assert_pristine(zoo.model)


def guarded(zoo, method):
    return wrap(zoo.model, None, method, **OPTIONS[method])


def answer(zoo, inputs, **settings):
    return zoo.model.generate(**inputs, **({"max_new_tokens": STEPS, "do_sample": False} | settings))


@every_kind
def test_text_streamer_prints_the_answer(llava, zoo_processor, capsys, method):
    tokenizer = zoo_processor("llava").tokenizer
    inputs = llava.make_inputs(PROMPTS[:1])
    with guarded(llava, method):
        expected = answer(llava, inputs)[0, inputs["input_ids"].shape[1] :]
        capsys.readouterr()
        answer(llava, inputs, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.split() == tokenizer.decode(expected).split()


@every_kind
def test_iterator_streamer_in_a_thread_of_its_own(llava, zoo_processor, method):
    tokenizer = zoo_processor("llava").tokenizer
    inputs = llava.make_inputs(PROMPTS[:1])
    with guarded(llava, method):
        expected = answer(llava, inputs)[0, inputs["input_ids"].shape[1] :]
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        thread = threading.Thread(target=answer, args=(llava, inputs), kwargs={"streamer": streamer})
        thread.start()
        pieces = list(streamer)
        thread.join()
    assert "".join(pieces).split() == tokenizer.decode(expected).split()


@every_kind
def test_custom_processors_and_criteria(llava, method):
    inputs = llava.make_inputs(PROMPTS)
    start = inputs["input_ids"].shape[1]

    class Forbid(LogitsProcessor):
        def __call__(self, input_ids, scores):
            assert scores.shape[0] == input_ids.shape[0] == 2
            return scores.index_fill(1, free[:, start], float("-inf"))

    class Enough(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= start + 3)

    with guarded(llava, method):
        free = answer(llava, inputs)
        other = answer(llava, inputs, logits_processor=LogitsProcessorList([Forbid()]))
        short = answer(llava, inputs, stopping_criteria=StoppingCriteriaList([Enough()]))
    assert not torch.isin(other[:, start:], free[:, start]).any()
    assert torch.equal(short, free[:, : start + 3])


def letter_tokenizer():
    """A letter for each of the zoo's ids; transformers finds stop strings in no tokenizer of whole words."""
    letters = Tokenizer(models.WordLevel({chr(ord("A") + number): number for number in range(200)}, unk_token="A"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters)


@every_kind
def test_stop_strings(llava, method):
    tokenizer = letter_tokenizer()
    inputs = llava.make_inputs(PROMPTS[:1])
    start = inputs["input_ids"].shape[1]
    with guarded(llava, method):
        free = answer(llava, inputs)[0]
        letters = tokenizer.decode(free[start + 1 : start + 3])
        stopped = answer(llava, inputs, stop_strings=[letters], tokenizer=tokenizer)[0]
    assert torch.equal(stopped, free[: start + 3])


@every_kind
def test_recorded_scores_are_those_that_were_decoded_from(llava, method):
    inputs = llava.make_inputs(PROMPTS)
    record = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    with guarded(llava, method):
        sequences = answer(llava, inputs)
        found = answer(llava, inputs, **record, output_hidden_states=True)
    assert torch.equal(found.sequences, sequences)
    tokens = sequences[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(torch.stack(found.scores, 1).argmax(-1), tokens)
    kept = ~torch.isinf(found.scores[0])
    assert all(torch.equal(*(part[kept] for part in pair)) for pair in zip(found.scores, found.logits))
    transitions = llava.model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    expected = torch.stack(found.scores, 1).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    assert torch.allclose(transitions, expected, atol=1e-5)
    assert [step[-1].shape[:2] for step in found.hidden_states[1:]] == [(2, 1)] * (STEPS - 1)


@every_kind
def test_greedy_is_the_argmax_and_sampling_follows_the_seed(llava, method):
    inputs = llava.make_inputs(PROMPTS)
    settings = {"do_sample": True, "top_k": 30, "temperature": 1.2, "num_return_sequences": 2}
    with guarded(llava, method):
        drawn = []
        for _ in range(2):
            torch.manual_seed(3)
            drawn.append(answer(llava, inputs, **settings))
        coldest = answer(llava, inputs, **(settings | {"temperature": 1e-3}))
        assert torch.equal(coldest, answer(llava, inputs).repeat_interleave(2, 0))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], coldest)


@pytest.mark.parametrize("method", ["var", "m3id", "vcd"])
def test_pipeline_answers_as_generate_does(llava, zoo_processor, method):
    from PIL import Image
    from transformers import pipeline

    processor = zoo_processor("llava")
    pipe = pipeline("image-text-to-text", model=llava.model, processor=processor)
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ((200, 30, 30), (20, 40, 190))]
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "what"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a red dog ."}]},
        {"role": "user", "content": [{"type": "image", "image": pictures[1]}, {"type": "text", "text": "and this"}]},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=pictures, text=text, return_tensors="pt")
    with wrap(llava.model, processor, method, **OPTIONS.get(method, {})):
        expected = answer(llava, inputs)[0, inputs["input_ids"].shape[1] :]
        found = pipe(text=messages, max_new_tokens=STEPS, return_full_text=False, generate_kwargs={"do_sample": False})
    assert found[0]["generated_text"].split() == processor.tokenizer.decode(expected).split()
