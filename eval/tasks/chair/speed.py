"""How long scoring a file of captions takes: `python -m vlm_guard.eval.tasks.chair.speed CAPTIONS OBJECTS OUTPUT`.

The captions are repeated, each time for other images, until there are as many as MSCOCO val2014 has images.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.coco import read_object_sets
from vlm_guard.eval.tasks.chair.captions import read_captions
from vlm_guard.eval.tasks.chair.report import score_captions

VAL2014_IMAGES = 40_504


def measure(captions: Path, objects: Path, count: int = VAL2014_IMAGES) -> dict[str, Any]:
    """Score `count` captions in pattern mode, in one process, from reading the files to the summary.

    Args:
        captions: caption file; its texts are taken in turn.
        objects: object sets; their images are taken in turn.
        count: number of captions.

    Returns:
        Seconds of processor time and by the clock, peak memory in MiB, and what was scored, as JSON can hold them.
    """
    texts = [record.caption for record in read_captions(captions)]
    images = list(read_object_sets(objects))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.jsonl"
        pairs = islice(zip(cycle(images), cycle(texts)), count)
        path.write_text("".join(json.dumps({"image_id": image, "caption": text}) + "\n" for image, text in pairs))
        processor, clock = time.process_time(), time.perf_counter()
        report = score_captions(path, read_object_sets(objects))
        processor, clock = time.process_time() - processor, time.perf_counter() - clock
    return {
        "captions": report.summary.captions,
        "mean_tokens": report.summary.mean_tokens,
        "mode": report.summary.mode,
        "processor_seconds": round(processor, 2),
        "clock_seconds": round(clock, 2),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load_average": round(os.getloadavg()[0], 1),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "source": captions.name,
    }


def main() -> None:
    """Measure and write the result as JSON."""
    parser = argparse.ArgumentParser(description="Measure the time CHAIR takes to score val2014-many captions.")
    parser.add_argument("captions", type=Path)
    parser.add_argument("objects", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.captions, arguments.objects)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
