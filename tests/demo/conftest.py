"""Shared by the demo's tests: the built-in model and a few scenes."""

import os
import socket

import pytest
import torch

from vlm_guard.builtin_model import builtin
from vlm_guard.eval.scenes import write_scenes

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


@pytest.fixture(scope="session")
def answering_model():
    from vlm_guard.demo.answering import AnsweringModel

    torch.set_num_threads(1)
    model, processor = builtin()
    return AnsweringModel(model=model, processor=processor)


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", "broken", 12, seed=4242)


@pytest.fixture(scope="session")
def pictures(scenes_folder):
    from vlm_guard.demo.pictures import open_pictures

    return open_pictures(str(scenes_folder))


@pytest.fixture
def context(answering_model, pictures):
    pytest.importorskip("gradio")
    from vlm_guard.demo.context import DemoContext

    return DemoContext(model=answering_model, browser=pictures)


@pytest.fixture(scope="session")
def page_app(answering_model, scenes_folder):
    """The page, served for the length of the tests."""
    pytest.importorskip("gradio")
    from vlm_guard.demo.app import build_app, launch_options

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = build_app(answering_model.model, answering_model.processor, str(scenes_folder), opening=True)
    app.launch(**launch_options(port), prevent_thread_lock=True, quiet=True)
    yield app
    app.close()


@pytest.fixture(scope="session")
def address(page_app):
    return page_app.local_url
