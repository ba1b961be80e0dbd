"""The answer parsers on answers where they agree and where they do not, and the token read-out."""

import pytest
import torch

from vlm_guard.eval.tasks.pope.scoring import PARSERS, parse_answer, token_readout, yes_no_token_ids

# answer: what strict, pope, opera read, and vcd where the label is yes, and no
ANSWERS = {
    "Yes": ("yes", "yes", "yes", "yes", "yes"),
    "No": ("no", "no", "no", "no", "no"),
    "yes, there is.": ("yes", "yes", "yes", "yes", "yes"),
    "No, there is not.": ("no", "no", "no", "no", "no"),
    "NO": ("no", "yes", "no", "no", "no"),
    " **Yes**, no doubt.": ("yes", "no", "no", "yes", "no"),
    "Yes. It is not hidden.": ("yes", "yes", "no", "yes", "no"),
    "There is no dog.": ("unparsed", "no", "no", "no", "no"),
    "There isn't a dog.": ("unparsed", "yes", "no", "no", "yes"),
    "I don't know": ("unparsed", "yes", "no", "no", "no"),
    "A dog is there.": ("unparsed", "yes", "yes", "no", "yes"),
    "Another dog.": ("unparsed", "yes", "yes", "no", "no"),
    "Nobody is there.": ("unparsed", "yes", "yes", "no", "no"),
    "yesterday": ("unparsed", "yes", "yes", "yes", "yes"),
    "No\nYes": ("no", "yes", "yes", "yes", "no"),
    "": ("unparsed", "yes", "yes", "no", "yes"),
}


@pytest.mark.parametrize("text", ANSWERS)
def test_parsers(text):
    read = [parse_answer(text, name) for name in ("strict", "pope", "opera")]
    read += [parse_answer(text, "vcd", label) for label in ("yes", "no")]
    assert tuple(read) == ANSWERS[text]


def test_parsers_are_chosen_by_name():
    assert set(PARSERS) == {"strict", "pope", "opera", "vcd"}
    with pytest.raises(ValueError, match="'loose'; it must be one of strict, pope, opera, vcd"):
        parse_answer("Yes", "loose")
    with pytest.raises(ValueError, match="needs the label yes or no, not None"):
        parse_answer("Yes", "vcd")


class Tokenizer:
    """One token per known spelling, several for everything else."""

    def __init__(self, **known):
        self.known = known

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [self.known[text]] if text in self.known else [900, 901]


def test_token_ids_come_from_the_tokenizer():
    tokenizer = Tokenizer(**{"yes": 3, "Yes": 4, " Yes": 4, "no": 7, " No": 8})
    assert yes_no_token_ids(tokenizer) == ([3, 4], [7, 8])
    with pytest.raises(ValueError, match="no single token for 'no'"):
        yes_no_token_ids(Tokenizer(yes=3))
    with pytest.raises(ValueError, match="the same token"):
        yes_no_token_ids(Tokenizer(yes=0, no=0))


def test_the_read_out_compares_the_best_spellings():
    logits = torch.zeros(4, 10)
    logits[0, 4] = 2.0  # Yes
    logits[1, 8] = 2.0  # No
    logits[2, [3, 7]] = torch.tensor([1.5, 1.0])
    answers, margin = token_readout(logits, [3, 4], [7, 8])
    assert answers == ["yes", "no", "yes", "no"]  # a tie is no yes
    assert margin.tolist() == [2.0, -2.0, 0.5, 0.0]
    with pytest.raises(ValueError, match=r"shape \(B, V\), not \(10,\)"):
        token_readout(logits[0], [3], [7])


def test_a_real_tokenizer_has_both_words():
    from transformers import AutoTokenizer

    from vlm_guard import builtin_model

    folder = builtin_model.__file__.rpartition("/")[0] + "/builtin"
    yes, no = yes_no_token_ids(AutoTokenizer.from_pretrained(folder))
    assert yes
    assert no
