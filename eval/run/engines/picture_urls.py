"""Pictures as data URLs: the file's own bytes where every reader sees the same in them, else a PNG of what we see."""

import base64
import io
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from PIL import Image

from vlm_guard.eval.tasks.base import Sample, Task
from vlm_guard.untrusted.picture_reader import plain_media_type, read_picture

_KEPT = 16


class PictureUrls:
    """The pictures of a run's samples. The last few are kept: the questions about one picture stand side by side."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int, str], str] = OrderedDict()
        self._lock = Lock()

    def url(self, task: Task, sample: Sample) -> str:
        """The picture to show with a sample, as a `data:` URL.

        Raises:
            OSError: the file is missing or cannot be read.
        """
        place = (task.name, sample.image_id, sample.variant)
        with self._lock:
            if place in self._known:
                self._known.move_to_end(place)
                return self._known[place]
        made = _made(task, sample)
        with self._lock:
            self._known[place] = made
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return made


def _made(task: Task, sample: Sample) -> str:
    seen: list[tuple[Path, Image.Image]] = []

    def read(path: Path) -> Image.Image:
        picture = read_picture(path)
        seen.append((path, picture))
        return picture

    shown = task.picture(sample, read)
    path = next((path for path, picture in seen if picture is shown), None)
    content = path.read_bytes() if path is not None else b""
    # The file has been read whole by now, so its header can be trusted.
    kind = plain_media_type(content) if content else None
    if kind is None:
        buffer = io.BytesIO()
        shown.save(buffer, "PNG")
        kind, content = "image/png", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
