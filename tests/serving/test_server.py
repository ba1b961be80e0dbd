"""The server that `vlm-guard serve` starts, asked by many at once, by the wrong ones, and by those who leave."""

import json
import socket
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from served_answers import SCORED, assert_same_mentions, assert_scored_alike, grounded_in_transformers
from server_process import ask, body, in_transformers, opened, running, served

from vlm_guard.builtin_model import shipped_folder
from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.scenes.dataset import write_scenes

pytest.importorskip("vllm", reason="vLLM is not installed; docs/serving.md says how to make an environment with it")
pytest.importorskip("uvicorn", reason="vLLM's server needs uvicorn")

pytestmark = pytest.mark.slow
OFFERS = ["none", "pai", "m3id", "zerotuning", "strict"]
STRICT = "pai:gain=0.5,guidance=1"
GROUNDING = "--grounding", "lens,self_check"
DECLARED = f"pai;m3id;zerotuning;strict={STRICT}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = write_scenes(tmp_path_factory.mktemp("scenes") / "s", "common", 4)
    return sorted(folder.rglob("*.png"))[:4]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server of the built-in model."""
    with served("builtin", DECLARED, tmp_path_factory.mktemp("log") / "server.log", *GROUNDING) as (address, _):
        yield address


@pytest.fixture(scope="module")
def expected(pictures):
    """By offer and picture, what transformers answers."""
    declared = {offer: None if offer == "none" else STRICT if offer == "strict" else offer for offer in OFFERS}
    found, text_of = in_transformers("builtin", declared, pictures)
    return {key: text_of(ids) for key, ids in found.items()}


def everybody(server, pictures, offers=OFFERS, **options):
    jobs = [(offer, path) for path in pictures for offer in offers]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return dict(zip(jobs, pool.map(lambda job: ask(server, body(job[1], job[0], **options)), jobs)))


def test_twenty_at_once_each_with_a_method_of_his_own(server, pictures, expected):
    assert everybody(server, pictures) == expected


def test_whoever_names_no_method_gets_the_plain_answer(server, pictures, expected):
    assert ask(server, body(pictures[0], None)) == expected["none", pictures[0]]


@pytest.mark.parametrize("wrong", [{"vlm_guard": "vcd"}, {"vlm_guard": 3}, {"vlm_guard_pair": "x"}])
def test_a_bad_request_is_answered_400_and_the_server_lives(server, pictures, expected, tmp_path, wrong):
    new = tmp_path / "new.png"
    Image.open(pictures[0]).rotate(len(json.dumps(wrong))).save(new)
    status, reason = ask(server, body(new, None, vllm_xargs=wrong))
    assert status == 400 and ("is not offered" in reason or "is not an argument" in reason)
    assert isinstance(ask(server, body(new, "m3id")), str), "a picture that was only refused so far"
    assert ask(server, body(pictures[0], "m3id")) == expected["m3id", pictures[0]]


def test_clients_that_leave_take_both_halves_along(server, pictures, expected):
    """Streams are closed after a few words; nothing may wait for the rest, and nobody's answer changes."""
    for offer in ["m3id", "pai", "strict"] * 3:
        stream = opened(server, body(pictures[1], offer, stream=True, max_tokens=150, ignore_eos=True))
        stream.readline()
        stream.close()
    assert everybody(server, pictures) == expected
    end = time.monotonic() + 30
    while running(server) and time.monotonic() < end:
        time.sleep(0.2)
    assert running(server) == 0


def about(path, answer, **options):
    """An answer to be scored."""
    messages = [*body(path, None)["messages"], {"role": "assistant", "content": answer}]
    return {"model": "builtin", "messages": messages, **options}


def scored(server, given):
    """What the server says of mentions, or the status of a refusal with its reason."""
    try:
        with opened(server, given, path="/v1/vlm_guard/mentions") as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def assert_scored(server, pictures):
    """All at once, each as in transformers."""
    jobs = list(zip(pictures, SCORED, strict=False)) * 3
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: scored(server, about(*job)), jobs))
    expected = grounded_in_transformers([([Image.open(path).convert("RGB")], text) for path, text in jobs[:3]])
    for reply, answer in zip(found, expected * 3, strict=True):
        assert reply["answer"] == answer.text and reply["measured"]
        assert_same_mentions(reply["mentions"], answer.mentions)


def test_answers_are_scored_as_in_transformers_beside_requests_of_all_kinds(server, pictures, expected):
    with ThreadPoolExecutor(1) as beside:
        asking = beside.submit(everybody, server, pictures)
        assert_scored(server, pictures)
        assert asking.result() == expected
    assert everybody(server, pictures) == expected


@pytest.mark.parametrize(
    ("wrong", "status", "reason"),
    [
        ({"messages": []}, 400, "the last is the assistant's answer"),
        ({"parts": ["logp"]}, 400, "logp is not measured by this engine; it measures lens, self_check"),
        ({"model": "nosuch"}, 404, "does not exist"),
        ({"vllm_xargs": {"vlm_guard_lens": "mine"}}, 400, "is not known here"),
    ],
)
def test_what_cannot_be_scored_is_refused(server, pictures, wrong, status, reason):
    found = scored(server, about(pictures[0], SCORED[0], **wrong))
    assert found[0] == status and reason in found[1]
    assert "mentions" in scored(server, about(pictures[0], SCORED[0]))


def test_a_client_that_leaves_its_mentions_leaves_nothing_behind(server, pictures):
    host, _, port = server.rpartition("//")[2].partition(":")
    for _ in range(4):
        with socket.create_connection((host, int(port)), timeout=30) as client:
            content = json.dumps(about(pictures[0], SCORED[0])).encode()
            head = f"POST /v1/vlm_guard/mentions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            client.sendall(head.encode() + content)
            time.sleep(0.02)
    assert_scored(server, pictures)
    assert running(server) == 0


def test_an_evaluation_through_the_server_has_the_records_of_one_in_transformers(server, tmp_path):
    """CHAIR and POPE, plain and guarded; what takes time, and what only logits show, is left out."""
    common = {"data": "scenes:common", "count": 4, "max_new_tokens": 48, "resamples": 100}
    evaluate(RunSettings(**common, methods=["none", "strict"], endpoint=f"{server}/v1"), tmp_path / "served")
    here = ["none", "pai:gain=0.5,guidance=1"]
    evaluate(RunSettings(**common, methods=here, device="cpu"), tmp_path / "here")
    served, expected = (read_results(tmp_path / name).methods for name in ("served", "here"))
    for left, right in zip(served, expected, strict=True):
        assert answered(tmp_path / "served" / left.directory) == answered(tmp_path / "here" / right.directory)
        assert left.chair == right.chair and left.pope == right.pope
    assert served[1].methods[0]["options"] == expected[1].methods[0]["options"]


def test_scored_captions_through_the_server_are_those_of_one_in_transformers(server, tmp_path):
    """The task `grounding`: mentions, scores, boxes, repair and what is computed from them."""
    common = {"data": "scenes:common", "count": 6, "resamples": 100, "tasks": ["grounding"]}
    common["grounding"] = {"max_new_tokens": 48}
    evaluate(RunSettings(**common, methods=["none", "strict"], endpoint=f"{server}/v1"), tmp_path / "served")
    evaluate(RunSettings(**common, methods=["none", STRICT], device="cpu"), tmp_path / "here")
    assert_scored_alike(tmp_path / "served", tmp_path / "here")
    common["grounding"] = {"max_new_tokens": 9, "repair": "rewrite"}
    with pytest.raises(ValueError, match="repair=rewrite cannot be used beside --endpoint"):
        evaluate(RunSettings(**common, endpoint=f"{server}/v1"), tmp_path / "no")


def answered(folder):
    records = read_records(folder / "samples.jsonl")[0]
    fields = ("prompt", "text", "tokens", "finished", "score")
    return {key: [record[name] for name in fields] for key, record in records.items()}


def test_a_real_language_model_answers_through_the_server_as_in_transformers(pictures, tmp_path):
    """SmolLM2 with its own chat template: plain, an edit of attention, and a contrast, all at once."""
    try:
        shipped_folder("smol")
    except ValueError as error:
        pytest.skip(str(error))
    offers = ["none", "pai:gain=0.5,guidance=1", "m3id"]
    with served("smol", ";".join(offers[1:]), tmp_path / "server.log") as (address, _):
        found = everybody(address, pictures[:2], offers, model="smol")
    declared = {offer: None if offer == "none" else offer for offer in offers}
    expected, text_of = in_transformers("smol", declared, pictures[:2])
    assert found == {key: text_of(ids) for key, ids in expected.items()}


def test_two_engines_behind_one_server_share_the_requests(pictures, expected, tmp_path):
    two = "--data-parallel-size", "2"
    with served("builtin", DECLARED, tmp_path / "server.log", *GROUNDING, *two) as (address, _):
        assert everybody(address, pictures) == expected
        assert_scored(address, pictures)
