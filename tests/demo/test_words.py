from vlm_guard.demo.words import split_words
from vlm_guard.grounding.answer_text import token_spans


class PieceTokenizer:
    """Token ids are indices into a list of text pieces; 0 is special."""

    def __init__(self, *pieces):
        self.pieces = ("", *pieces)

    def decode(self, ids, **options):
        raw = b"".join(p if isinstance(p, bytes) else p.encode() for p in (self.pieces[i] for i in ids))
        return raw.decode("utf-8", errors="replace")


def test_words_know_their_tokens():
    tokenizer = PieceTokenizer(" A", " surf", "board", ".", " Fin")
    text, words = split_words(tokenizer, [1, 2, 3, 4, 5, 0])
    assert text == "A surfboard. Fin"
    assert [(word.text, word.steps) for word in words] == [("A", (0,)), ("surfboard.", (1, 2, 3)), ("Fin", (4,))]
    assert all(text[word.start : word.end] == word.text for word in words)


def test_a_character_may_be_spelt_by_several_tokens():
    first, second = "é".encode()[:1], "é".encode()[1:]
    tokenizer = PieceTokenizer(" caf", first, second, " ole")
    text, spans = token_spans(tokenizer, [1, 2, 3, 4])
    assert text == "café ole"
    assert spans[1] == (3, 3) and spans[2] == (3, 4)
    assert [word.steps for word in split_words(tokenizer, [1, 2, 3, 4])[1]] == [(0, 1, 2), (3,)]


def test_nothing_said():
    assert split_words(PieceTokenizer(" "), [0]) == ("", ())
    assert split_words(PieceTokenizer(" "), [1, 0]) == ("", ())


def test_words_of_the_builtin_model_cover_its_text(answering_model, pictures):
    answer = answering_model.answer(pictures.first().image, "Please describe this image in detail.")
    assert " ".join(word.text for word in answer.words) == answer.text
    steps = [step for word in answer.words for step in word.steps]
    assert steps == sorted(steps) and set(steps) <= set(range(len(answer.token_ids)))
