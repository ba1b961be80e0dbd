"""Who is in which row, and which pairs sample together."""

from types import SimpleNamespace

from vlm_guard.serving.vllm.rows import PAIR, SHADOW, SIDE, GuardedRequest, RowTable


def request(pair=None, side="positive", shadow=False, prompt=(1, 2, 3), answer=()):
    extra = {"vlm_guard": "x"}
    if pair:
        extra |= {PAIR: pair, SIDE: side} | ({SHADOW: True} if shadow else {})
    return GuardedRequest(extra, list(prompt), list(answer))


def table_of(lengths, **requests):
    table = RowTable()
    for row, item in requests.items():
        table.requests[int(row[1:])] = item
    table.lengths = lengths
    table.change()
    return table


def test_a_request_that_a_step_has_left_out_is_known_again():
    params, first, second = SimpleNamespace(extra_args={"vlm_guard": "x"}), [1, 4, 4, 7], [1, 4, 4, 7]
    known = GuardedRequest.of(params, first, [])
    known.begin((4,)).memory("var", 0).sinks = "found"
    again, answer = GuardedRequest.of(params, first, [9]), [9]
    assert again is known and again.answer == answer and again.begin((4,)).memory("var", 0).sinks == "found"
    assert GuardedRequest.of(params, second, []) is not known, "another prompt with the same parameters"


def test_rows_move_and_swap():
    first, second = request(), request()
    table = table_of([], r0=first, r2=second)
    table.move(2, 1, swap=False)
    assert table.requests == {0: first, 1: second}
    table.move(0, 1, swap=True)
    assert table.requests == {0: second, 1: first}
    table.move(1, 5, swap=True)
    assert table.requests == {0: second, 5: first}
    table.move(7, 0, swap=False)
    assert table.requests == {5: first}, "a plain request has come into row 0"


def test_a_pair_has_its_positive_row_where_its_sign_says():
    table = table_of([3, 9, 3], r0=request("p"), r2=request("p", "negative", True))
    (pair,) = table.pairs(3)
    assert (pair.asked, pair.shadow, pair.positive, pair.negative) == (0, 2, 0, 2)
    table = table_of([3, 9, 3], r0=request("p", "negative"), r2=request("p", "positive", True))
    (pair,) = table.pairs(3)
    assert (pair.asked, pair.shadow, pair.positive, pair.negative) == (0, 2, 2, 0)


def test_only_rows_that_have_read_everything_sample_together():
    both = {"r0": request("p", answer=(7,)), "r1": request("p", "negative", True, answer=(7,))}
    assert len(list(table_of([4, 4], **both).pairs(2))) == 1
    assert list(table_of([3, 4], **both).pairs(2)) == []
    assert list(table_of([4], **both).pairs(2)) == []
    assert list(table_of([4, 4], **both).pairs(1)) == []


def test_half_a_pair_is_no_pair():
    assert list(table_of([3], r0=request("p")).pairs(1)) == []


def test_edits_of_earlier_rows_are_never_taken_for_those_of_later_ones():
    first = request()
    first.begin((2,))
    first.read(3, 0)
    first.read(1, 3)
    known = first.serial
    first.edits[0] = None
    first.read(1, 4)
    assert first.serial == known and first.edits, "an answer goes on with the same edits"
    first.read(4, 0)
    assert first.serial != known and not first.edits, "read again after it was preempted"
    assert len({first.serial, request().serial, request().serial}) == 3
