"""Which pairs enter, and who leaves with whom."""

from dataclasses import dataclass

from vlm_guard.serving.vllm.scheduling.pairs import Pairs


@dataclass(eq=False)
class Request:
    request_id: str
    blocks: int


def pairs_of(total, *sizes):
    pairs = Pairs(lambda request: request.blocks, total)
    for name, size in zip("abcdef", sizes):
        pairs.add(Request(name, size), Request(f"{name} shadow", size))
    return pairs


def names(found):
    return [request.request_id for request, _ in found]


def test_pairs_enter_while_both_halves_of_all_fit():
    pairs = pairs_of(10, 2, 2, 2)
    assert names(pairs.admitted()) == ["a", "b"] and names(pairs.held) == ["c"]
    assert names(pairs.admitted()) == []
    pairs.forget("a")
    assert names(pairs.admitted()) == ["c"]


def test_nobody_overtakes_a_pair_that_waits():
    pairs = pairs_of(10, 2, 4, 1)
    assert names(pairs.admitted()) == ["a"]
    assert names(pairs.held) == ["b", "c"]


def test_a_pair_alone_always_enters():
    assert names(pairs_of(3, 2).admitted()) == ["a"]


def test_halves_know_each_other_until_one_has_ended():
    pairs = pairs_of(10, 2)
    assert names(pairs.admitted()) == ["a"]
    assert pairs.partner("a").request_id == "a shadow" and pairs.partner("a shadow").request_id == "a"
    assert pairs.is_shadow("a shadow") and not pairs.is_shadow("a")
    assert pairs.with_shadows(["x", "a"]) == ["x", "a", "a shadow"]
    assert names(pairs.requests()) == ["a"]
    pairs.forget("a")
    assert pairs.partner("a") is None and pairs.partner("a shadow") is None and pairs.requests() == []
    assert pairs.is_shadow("a shadow"), "its last outputs must still be kept from clients"
    pairs.drop_shadows({"a shadow"})
    assert pairs.is_shadow("a shadow")
    pairs.drop_shadows({})
    assert not pairs.is_shadow("a shadow")


def test_a_pair_that_has_not_entered_is_taken_back_whole():
    pairs = pairs_of(4, 2, 2)
    assert names(pairs.admitted()) == ["a"]
    assert [request.request_id for request in pairs.withdraw(["a", "b"])] == ["b"]
    assert names(pairs.held) == [] and pairs.partner("b") is None and pairs.partner("a") is not None
