"""A run that a chat server answers: what is sent, what is written down, what a server may do wrong."""

import io
import subprocess
import sys
import threading

import pytest
from chat_stand_in import OFFERS, ChatStandIn, scripted, serving, shown_bytes
from PIL import Image
from small_coco import make_coco_folder

from vlm_guard import cli
from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.console import results_tables
from vlm_guard.eval.report.tables import caption_of
from vlm_guard.eval.run.engines import chat_server
from vlm_guard.eval.run.engines.chat_server import KEY_VARIABLE, ServerLost
from vlm_guard.eval.run.engines.endpoint_settings import base_address
from vlm_guard.eval.run.engines.picture_urls import PictureUrls
from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.tasks.base import Sample
from vlm_guard.untrusted.picture_reader import read_picture

VOLATILE = ("seconds", "memory_bytes", "memory_kind", "batch", "turn", "timed", "yes_margin")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_coco_folder(tmp_path_factory.mktemp("data") / "small", images=4)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(chat_server, "FIRST_WAIT", 0.01)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return ChatStandIn()


def settings(coco, address, **changes):
    values = {"data": f"coco:{coco}", "endpoint": address, "max_new_tokens": 12, "resamples": 100}
    return RunSettings(**{**values, "pope": {"strategies": ["random"]}, **changes})


def stable(folder):
    records = read_records(folder / "samples.jsonl")[0]
    return {
        key: {name: value for name, value in record.items() if name not in VOLATILE} for key, record in records.items()
    }


def refusal(coco, stand_in, out, **changes):
    with serving(stand_in) as address, pytest.raises((ValueError, OSError)) as refused:
        evaluate(settings(coco, address, **{"tasks": ["chair"], **changes}), out)
    assert not list(out.rglob("results.json")) and "\n" not in str(refused.value)
    return refused.value


@pytest.mark.usefixtures("one_thread")
def test_the_built_in_model_behind_a_server_gives_the_records_of_a_run_in_this_process(coco, stand_in, tmp_path):
    import torch

    from vlm_guard import builtin

    model, processor = builtin(device="cpu")
    alone = threading.Lock()

    def answer(picture, prompt, method, limit):
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
        )
        with alone, torch.inference_mode():
            inputs = processor(images=Image.open(io.BytesIO(picture)).convert("RGB"), text=text, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        ended = new[-1].item() == model.generation_config.eos_token_id
        return processor.decode(new, skip_special_tokens=True), len(new), "stop" if ended else "length"

    stand_in.answer = answer
    with serving(stand_in) as address:
        evaluate(settings(coco, address, count=2), tmp_path / "served")
    here = RunSettings(
        data=f"coco:{coco}",
        device="cpu",
        methods=["none"],
        count=2,
        max_new_tokens=12,
        resamples=100,
        pope={"strategies": ["random"]},
    )
    evaluate(here, tmp_path / "here")
    served, expected = stable(tmp_path / "served" / "none"), stable(tmp_path / "here" / "none")
    assert served == expected and len(served) > 4
    left, right = (read_results(tmp_path / name).methods[0] for name in ("served", "here"))
    assert left.chair == right.chair and left.pope == right.pope and left.estimates == right.estimates
    compared = compare_runs([tmp_path / "served", tmp_path / "here"])
    assert len(compared.records) == 2 and any("model" in note for note in compared.notes)


def test_many_at_once_give_the_records_of_one_at_a_time(coco, stand_in, tmp_path):
    stand_in.offers = OFFERS
    with serving(stand_in) as address:
        evaluate(settings(coco, address, methods=["none", "strict"], concurrency=1), tmp_path / "one")
        assert stand_in.most_at_once == 1
        bodies, stand_in.bodies = stand_in.bodies, []
        stand_in.gate = threading.Barrier(2)  # nobody is answered before two are there
        results = evaluate(settings(coco, address, methods=["none", "strict"], concurrency=2), tmp_path / "two")
    assert stand_in.most_at_once == 2 and len(bodies) == len(stand_in.bodies)
    for name in ("none", "strict"):
        one, two = stable(tmp_path / "one" / name), stable(tmp_path / "two" / name)
        assert list(one) == list(two) and one == two
    assert {body.get("vllm_xargs", {}).get("vlm_guard") for body in bodies} == {None, "strict"}
    assert all(body["temperature"] == 0 and body["model"] == "small" for body in bodies)
    assert {body["max_tokens"] for body in bodies} == {12, 10}  # POPE has a limit of its own
    assert results.methods[1].methods == OFFERS["offers"]["strict"]
    assert results.model["server_versions"] == OFFERS["versions"]


def test_results_claim_nothing_about_the_server(coco, stand_in, tmp_path):
    with serving(stand_in) as address:
        results = evaluate(settings(coco, address, tasks=["chair"]), tmp_path)
    assert results.model == {"name": "small", "dtype": "not known", "server_versions": {}, "endpoint": address}
    assert results.environment["hardware"]["server"] == "not known" and "torch" not in results.environment["versions"]
    cost = results.methods[0].cost
    assert (cost.timed, cost.peak_memory_bytes, cost.memory_kind) == ("request", 0, "not known")
    heads = [column.header for table in results_tables(results, 200) for column in table.columns]
    assert any("client's tokens/s" in str(head) for head in heads) and "not known" in caption_of(results)
    assert read_results(tmp_path).methods[0].sessions[0]["endpoint"] == address


def test_an_interrupted_run_asks_the_rest_and_nothing_else(coco, stand_in, tmp_path):
    class StopAfterFive:
        told = 0

        def note(self, sentence):
            pass

        def start(self, total, done):
            pass

        def advance(self, count, method):
            self.told += count
            if self.told == 5:
                raise KeyboardInterrupt

        def stop(self):
            pass

    with serving(stand_in) as address:
        with pytest.raises(KeyboardInterrupt):
            evaluate(settings(coco, address, concurrency=1), tmp_path / "run", progress=StopAfterFive())
        log = tmp_path / "run" / "none" / "samples.jsonl"
        with log.open("ab") as file:
            file.write(b'{"sample": "chair/4", "task": "cha')
        kept = set(stable(log.parent))
    other = ChatStandIn()  # the first one may still be answering what nobody waits for
    with serving(other) as address:
        results = evaluate(settings(coco, address), tmp_path / "run")
        asked = len(other.bodies)
        evaluate(settings(coco, address), tmp_path / "whole")
    assert any("servers at 2 addresses" in note for note in results.notes)
    whole = stable(tmp_path / "whole" / "none")
    assert len(kept) == 5 and asked == len(whole) - 5
    assert stable(log.parent) == whole and list(stable(log.parent)) == list(whole)


def test_a_busy_server_is_asked_again(coco, stand_in, tmp_path):
    busy = {"error": {"message": "slow down"}}
    stand_in.failures = [(429, busy, [("Retry-After", "0")]), (503, b"<html>"), "hang up", (200, b"{half")]
    with serving(stand_in) as address:
        results = evaluate(settings(coco, address, tasks=["chair"], concurrency=1), tmp_path)
    assert results.methods[0].samples["chair"].answered == 4 and not stand_in.failures


def test_a_server_that_stays_away_is_said_and_what_is_there_is_kept(coco, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_server, "TRIES", 2)
    told = []

    def answer(*asked):
        told.append(asked)
        if len(told) == 2:
            stand_in.failures = [(502, b"gone")] * 9
        return scripted(*asked)

    stand_in.answer = answer
    error = refusal(coco, stand_in, tmp_path, concurrency=1)
    assert isinstance(error, ServerLost) and "in 2 tries; the last time: HTTP 502: gone" in str(error)
    assert len(stable(tmp_path / "none")) == 2


def test_a_lost_server_is_one_line_and_exit_code_1(coco, stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chat_server, "TRIES", 1)
    stand_in.failures = [(500, b"broken")] * 9
    with serving(stand_in) as address, pytest.raises(SystemExit) as stopped:
        given = ["--data", f"coco:{coco}", "--task", "chair", "--concurrency", "1", "--out", str(tmp_path / "run")]
        cli.main(["eval", "--endpoint", address, *given])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 1 and said.startswith("error: ") and "run the same command again" in said


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ((400, {"error": {"message": "max_tokens is too large"}}), "HTTP 400: max_tokens is too large; change what"),
        ((404, {"detail": "no such model"}), "HTTP 404: no such model; check --endpoint"),
        ((307, b"", [("Location", "http://elsewhere/v1")]), "on to http://elsewhere/v1; give that server's address"),
        ((200, {"choices": []}), "no chat completion with its usage"),
    ],
)
def test_a_refusal_says_what_was_sent_and_what_to_do(coco, stand_in, tmp_path, failure, said):
    stand_in.failures = [failure]
    error = refusal(coco, stand_in, tmp_path, concurrency=1)
    assert said in str(error) and "chair/1" in str(error)
    assert not stable(tmp_path / "none")


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(coco, stand_in, tmp_path, monkeypatch, capsys):
    stand_in.key = "secret-1"
    assert f"{KEY_VARIABLE}: it is not set" in str(refusal(coco, stand_in, tmp_path))
    monkeypatch.setenv(KEY_VARIABLE, "secret-2")
    error = str(refusal(coco, stand_in, tmp_path))
    assert "was not accepted" in error and "secret" not in error
    monkeypatch.setenv(KEY_VARIABLE, "secret\n3")
    assert "secret" not in str(refusal(coco, stand_in, tmp_path))
    monkeypatch.setenv(KEY_VARIABLE, "secret-1")
    with serving(stand_in) as address:
        evaluate(settings(coco, address, tasks=["chair"]), tmp_path)
    files = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3 and not any("secret" in text for text in files)


def test_models_are_chosen_among_those_there_are(coco, stand_in, tmp_path):
    stand_in.models = ["a", "b"]
    assert "has a, b; say which with --endpoint-model" in str(refusal(coco, stand_in, tmp_path))
    assert "no model 'c'; it has a, b" in str(refusal(coco, stand_in, tmp_path, endpoint_model="c"))
    with serving(stand_in) as address:
        results = evaluate(settings(coco, address, tasks=["chair"], endpoint_model="b"), tmp_path)
    assert results.model["name"] == "b" and {body["model"] for body in stand_in.bodies} == {"b"}


def test_a_method_is_never_taken_for_granted(coco, stand_in, tmp_path):
    assert "declares no methods" in str(refusal(coco, stand_in, tmp_path, methods=["strict"]))
    stand_in.offers = OFFERS
    error = str(refusal(coco, stand_in, tmp_path, methods=["none", "var"]))
    assert "'var' is not offered" in error and "offered: none, strict" in error
    stand_in.offers = OFFERS | {"offers": {"strict": ["pai"]}}
    assert "says what cannot be read (offers.strict.0" in str(refusal(coco, stand_in, tmp_path, methods=["strict"]))
    # Where requests that name nothing are guarded, the plain model must be asked for.
    stand_in.offers = OFFERS | {"default": "strict"}
    with serving(stand_in) as address:
        evaluate(settings(coco, address, tasks=["chair"], methods=["none"]), tmp_path)
    assert {body["vllm_xargs"]["vlm_guard"] for body in stand_in.bodies} == {"none"}


def test_a_server_that_scores_no_mentions_is_not_asked_for_any(coco, stand_in, tmp_path):
    for offers in (None, OFFERS):
        stand_in.offers = offers
        assert "gives none; start it with 'vlm-guard serve" in str(
            refusal(coco, stand_in, tmp_path, tasks=["grounding"])
        )
    assert not stand_in.bodies


def test_scores_of_mentions_are_the_servers(coco, stand_in, tmp_path):
    stand_in.offers = OFFERS | {"grounding": ["lens", "self_check"]}
    with serving(stand_in) as address:
        results = evaluate(settings(coco, address, tasks=["grounding"]), tmp_path)
    asked = [body for body in stand_in.bodies if body["messages"][-1]["role"] == "assistant"]
    assert len(asked) == results.methods[0].samples["grounding"].answered == 4
    for body in asked:
        text = body["messages"][-1]["content"]
        assert [text[one["start"] : one["end"]] for one in body["mentions"]][:2] == ["dog", "car"]
        assert body["token_ids"] == [7, 8] and body["repair"] == "drop" and body["parts"] == ["lens", "self_check"]
    records = read_records(tmp_path / "none" / "samples.jsonl")[0]
    for record in records.values():
        first = record["score"]["mentions"][0]
        assert (first["noun"], first["score"], first["box"]["right"]) == ("dog", 0.25, 0.5)
        assert record["score"]["repaired"]["text"] == "A car."
    for given, name in (({"lens_layers": [0]}, "lens_layers"), ({"parts": ["logp"]}, "parts=logp")):
        said = str(refusal(coco, stand_in, tmp_path / "no", tasks=["grounding"], grounding=given))
        assert f"grounding.{name} cannot be used beside --endpoint" in said
    stand_in.scores = {"mentions": [{"text": "dog"}]}
    said = str(refusal(coco, stand_in, tmp_path / "other", tasks=["grounding"]))
    assert "says of 'grounding/" in said and "mentions.0" in said


def test_an_answer_that_the_server_withheld_is_skipped_and_counted(coco, stand_in, tmp_path):
    stand_in.answer = lambda *asked: ("", 0, "content_filter")
    with serving(stand_in) as address:
        results = evaluate(settings(coco, address, tasks=["chair"]), tmp_path)
    assert results.methods[0].samples["chair"].skipped == 4
    assert "content_filter" in results.methods[0].skipped_images[0]["error"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float16"}, "--dtype cannot be used beside --endpoint: the server has loaded"),
        ({"batch_size": 4}, "--batch-size cannot be used beside --endpoint"),
        ({"model": "smol"}, "--model cannot be used beside --endpoint: the server has its model"),
        ({"options": {"pai.gain": 1}}, "--set cannot be used"),
        ({"decoding": {"num_beams": 2}}, "--num-beams cannot be used"),
        ({"endpoint": None, "concurrency": 2}, "--concurrency is for a server's answers"),
    ],
)
def test_what_would_change_nothing_is_refused(coco, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        evaluate(RunSettings(**{"data": f"coco:{coco}", "endpoint": "http://127.0.0.1:9/v1", **changes}), tmp_path)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("https://host/openai/v1/", "https://host/openai/v1"),
        ("http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/v1"),
        ("localhost:8000", None),
        ("http://name:hidden@host/v1", None),
        ("http://host/v1?key=hidden", None),
        ("http://host:port/v1", None),
        ("file:///etc/passwd", None),
    ],
)
def test_addresses(given, address):
    if address is not None:
        assert base_address(given) == address
        return
    with pytest.raises(ValueError, match="--endpoint") as refused:
        base_address(given)
    assert "hidden" not in str(refused.value)


def test_pictures_reach_every_server_as_we_see_them(tmp_path):
    colours = Image.linear_gradient("L").resize((40, 30))
    colours = Image.merge("RGB", (colours, colours.transpose(Image.Transpose.ROTATE_180), colours))
    turned = Image.Exif()
    turned[0x0112] = 6
    half = colours.convert("RGBA")
    half.putalpha(colours.getchannel(0))
    colours.save(tmp_path / "plain.jpg")
    colours.save(tmp_path / "turned.jpg", exif=turned)
    colours.convert("CMYK").save(tmp_path / "print.jpg")
    colours.convert("P").save(tmp_path / "palette.png")
    half.save(tmp_path / "half.png")
    colours.save(tmp_path / "map.bmp")
    colours.save(tmp_path / "moving.webp", save_all=True, append_images=[half.convert("RGB").rotate(90)])

    class Shows:
        name = "any"

        def picture(self, sample, read):
            return read(tmp_path / sample.prompt)

    for number, path in enumerate(sorted(tmp_path.iterdir())):
        url = PictureUrls().url(Shows(), Sample(key="k", task="any", image_id=number, prompt=path.name))
        sent = shown_bytes({"type": "image_url", "image_url": {"url": url}})
        assert (sent == path.read_bytes()) == (path.name == "plain.jpg"), path.name
        naive = Image.open(io.BytesIO(sent)).convert("RGB")
        assert naive.tobytes() == read_picture(path).tobytes() and naive.size == read_picture(path).size, path.name


def test_a_client_needs_no_torch():
    """It is on the server; importing it here would cost every start ten seconds."""
    ask = "import sys, vlm_guard.eval.run.command; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", ask], check=True)
