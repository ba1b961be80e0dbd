"""Under which names the page answers, and what is left of pictures that visitors send."""

import concurrent.futures
import io
import time
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio")

import httpx  # noqa: E402
from PIL import Image, ImageFile  # noqa: E402

from vlm_guard.cli import main  # noqa: E402
from vlm_guard.demo import uploads  # noqa: E402
from vlm_guard.demo.app import check_hosts, launch_options  # noqa: E402
from vlm_guard.demo.uploads import decode_upload  # noqa: E402


def picture(size=(40, 30), colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost", 200),
        ("LOCALHOST", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example", 400),
        ("", 400),
    ],
)
@pytest.mark.parametrize("path", ["", "config", "gradio_api/info"])
def test_only_this_machines_names_are_answered(address, host, status, path):
    port = address.rstrip("/").rpartition(":")[2]
    answer = httpx.get(address + path, headers={"Host": f"{host}:{port}"})
    assert (answer.status_code == 400) == (status == 400)


def test_uploads_under_another_name_are_refused(address):
    answer = httpx.post(
        f"{address}gradio_api/upload",
        files={"files": ("a.png", picture(), "image/png")},
        headers={"Host": "evil.example"},
    )
    assert answer.status_code == 400


@pytest.mark.parametrize("name", ["demo.example.org", "*.example.org", "10.0.0.7", "My-Host"])
def test_further_names_can_be_allowed(name):
    assert check_hosts([name]) == (name.lower(),)
    (middleware,) = launch_options(7000, [name])["app_kwargs"]["middleware"]
    assert middleware.kwargs["allowed_hosts"] == ["127.0.0.1", "localhost", name.lower()]


@pytest.mark.parametrize(
    "name", ["", "*", "http://a.org", "a.org:80", "a b", "*.", "a/*", "-a", "a.*.org", "x" * 300, "a\x1b[31m", "ä.org"]
)
def test_what_is_no_host_name_is_refused_before_a_model_is_loaded(name, capsys, monkeypatch):
    from vlm_guard.eval.run import models

    monkeypatch.setattr(models, "load_model", lambda *a, **k: pytest.fail("loaded a model first"))
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--allow-host", name])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "is no host name" in error and error.count("\n") == 1


def send(address, content):
    """Send a file as the page does; the path it lay at, and the page's answer."""
    path = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", content, "image/png")}).json()[0]
    lay_there = Path(path).is_file()
    config = httpx.get(f"{address}config").json()
    types = {part["id"]: part["type"] for part in config["components"]}
    button = next(number for number, kind in types.items() if kind == "uploadbutton")
    event = next(one for one in config["dependencies"] if any(target[0] == button for target in one["targets"]))
    values = {"uploadbutton": {"path": path, "meta": {"_type": "gradio.FileData"}}, "dropdown": ["pai"]}
    data = [values.get(types[number]) for number in event["inputs"]]
    body = {"data": data, "fn_index": event["id"], "session_hash": f"visitor{time.monotonic_ns()}"}
    answer = httpx.post(f"{address}gradio_api/run/predict", json=body, timeout=60)
    return Path(path), lay_there, answer


@pytest.mark.parametrize(("content", "words"), [(picture(), "Your picture"), (b"no picture", "cannot be read")])
def test_a_sent_file_is_deleted_when_it_is_read_also_a_broken_one(address, content, words):
    path, lay_there, answer = send(address, content)
    assert lay_there and answer.status_code == 200 and words in answer.text
    assert not path.exists() and not path.parent.exists()


def test_a_file_that_has_gone_gives_nothing():
    button = uploads.read_once(gr.UploadButton(type="binary"))
    assert button.preprocess(gr.FileData(path="/nowhere/a.png")) is None
    assert button.preprocess(None) is None


def test_files_that_are_never_asked_about_are_deleted_too(page_app):
    check_every, life = page_app.delete_cache
    assert 0 < check_every <= 60 and 0 < life <= 600


def test_one_picture_is_decoded_at_a_time(monkeypatch):
    inside, most = [], []

    def slow(content, *rest, **options):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(uploads, "read_picture", slow)
    with concurrent.futures.ThreadPoolExecutor(8) as visitors:
        assert len(list(visitors.map(decode_upload, [b"x"] * 8))) == 8
    assert max(most) == 1


def test_the_size_is_read_before_anything_is_decoded(monkeypatch):
    content = picture((5000, 5000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded a picture that is too large"))
    with pytest.raises(ValueError, match="pixels"):
        decode_upload(content)
