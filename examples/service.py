"""A small web service: one guarded model, a method for each request, answers streamed word by word.

    python examples/service.py [PORT]          (needs the extra `demo`, which brings FastAPI and uvicorn)
    curl -N -F picture=@scene.png -F question="What is in this picture?" -F method=pai:gain=0.4 localhost:8000/answer

Requests queue for the model, and each is answered with its own method.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Form, HTTPException, UploadFile
from fastapi.responses import StreamingResponse
from transformers import TextIteratorStreamer

from vlm_guard import builtin, wrap
from vlm_guard.untrusted.picture_reader import read_picture

model, processor = builtin()
guard = wrap(model, processor, "none")
app = FastAPI()


@app.post("/answer")
def answer(
    picture: UploadFile, question: Annotated[str, Form()], method: Annotated[str, Form()] = "none"
) -> StreamingResponse:
    """The answer as plain text, while it is made."""
    with TemporaryDirectory() as folder:
        upload = Path(folder) / "upload"
        upload.write_bytes(picture.file.read())
        try:
            image = read_picture(upload)
        except ValueError:
            raise HTTPException(422, "this picture cannot be read") from None
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    special = [token for token in processor.tokenizer.get_added_vocab() if token in question]
    if special:
        # A placeholder of a picture, or the end of a turn, would be read as such.
        raise HTTPException(422, f"a question cannot contain {special[0]}, which the model reads as a mark of its own")
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    refused: Queue[str] = Queue()

    def generate() -> None:
        try:
            guard.generate(**inputs, method=method, max_new_tokens=128, do_sample=False, streamer=streamer)
        except ValueError as error:
            refused.put(str(error))
        finally:
            streamer.end()

    Thread(target=generate, daemon=True).start()
    first = next(streamer, "")
    if not refused.empty():
        raise HTTPException(422, refused.get())

    def words() -> Iterator[str]:
        yield first
        yield from streamer

    return StreamingResponse(words(), media_type="text/plain")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
