"""The prompts a model is calibrated with: descriptions, and questions whose right answer is yes."""

from typing import Any

from torch import nn

from vlm_guard.eval.data.datasets import open_dataset
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.tasks.pope.questions import question_text
from vlm_guard.families.architecture import inference_device
from vlm_guard.untrusted.picture_reader import read_picture

QUESTIONS_PER_PICTURE = 2


def calibration_prompts(
    model: nn.Module, processor: Any, data: str, count: int, description: str
) -> tuple[list[Any], list[Any]]:
    """Model inputs, each of batch 1, on the model's device.

    Args:
        model: decides device and dtype.
        processor: its processor.
        data: name of a data set, as for `open_dataset`.
        count: number of pictures.
        description: how a description is asked for.

    Returns:
        One description prompt for each picture, and up to `QUESTIONS_PER_PICTURE` questions about objects in it.

    Raises:
        ValueError: the data set is unknown, or none of the pictures shows an annotated object.
    """
    dataset = open_dataset(data, count)
    template = find_template(processor)
    where = {"device": inference_device(model), "dtype": model.dtype}
    descriptions, questions = [], []
    for number, path in list(dataset.images.items())[:count]:
        picture = read_picture(path)
        descriptions.append(template.encode(processor, [picture], [description]).to(**where))
        for name in dict.fromkeys(dataset.objects.get(number, ())[:QUESTIONS_PER_PICTURE]):
            questions.append(template.encode(processor, [picture], [question_text(name)]).to(**where))
    if not questions:
        raise ValueError(f"none of the {count} pictures of {data} shows an annotated object to ask about")
    return descriptions, questions
