"""The pictures a visitor can browse: a data set's, each with its ground truth, or one that was sent in."""

import difflib
import random
from dataclasses import dataclass, field

from PIL import Image

from vlm_guard.demo.opening import example_data
from vlm_guard.eval.data.coco import image_id
from vlm_guard.eval.data.datasets import EvaluationData, open_dataset
from vlm_guard.eval.tasks.pope.questions import PopeQuestion, build_questions
from vlm_guard.untrusted.picture_reader import read_picture

EXAMPLE_COUNT = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture with what is known about it.

    Attributes:
        image: RGB.
        title: what the page calls it.
        image_id: its id in the data set; None for a picture that was sent in.
        objects: MSCOCO categories in it, or None where nobody knows.
        place: its number in the data set from 1, or 0.
    """

    image: Image.Image
    title: str
    image_id: int | None = None
    objects: tuple[str, ...] | None = None
    place: int = 0

    @property
    def alt_text(self) -> str:
        """A description for those who do not see the picture."""
        if self.objects is None:
            return "The picture you sent; what is in it is not known to this page"
        return f"Picture {self.image_id} with {', '.join(self.objects) or 'none of the 80 object classes'}"


@dataclass(kw_only=True, eq=False)
class PictureBrowser:
    """Pictures of a data set in the order of the data set, read from disk when asked for.

    Attributes:
        data: the data set.
        names: what the pictures are called that are not called by data set and number.
    """

    data: EvaluationData
    names: dict[int, str] = field(default_factory=dict)
    _questions: dict[int, dict[int, list[PopeQuestion]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = list(self.data.images)
        if not self.ids:
            raise ValueError(f"{self.data.name} has no pictures to show; give a data set with images")
        self._places = {number: place for place, number in enumerate(self.ids)}

    def picture(self, number: int) -> Picture:
        """The picture with this image id.

        Raises:
            ValueError: the data set has no such id, or its file cannot be read.
        """
        if number not in self._places:
            near = difflib.get_close_matches(str(number), map(str, self.ids), n=1, cutoff=0.5)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ValueError(f"{self.data.name} has no image {number}{hint}")
        return Picture(
            image=read_picture(self.data.images[number]),
            title=self.names.get(number, f"{self.data.name}, image {number}"),
            image_id=number,
            objects=tuple(self.data.objects[number]),
            place=self._places[number] + 1,
        )

    def first(self) -> Picture:
        """The first picture."""
        return self.picture(self.ids[0])

    def beside(self, picture: Picture, step: int) -> Picture:
        """The picture `step` places on (or back), around the end; the first after one that was sent in."""
        if picture.image_id not in self._places:
            return self.first()
        return self.picture(self.ids[(self._places[picture.image_id] + step) % len(self.ids)])

    def any(self) -> Picture:
        """A picture at random."""
        return self.picture(random.choice(self.ids))

    def by_text(self, text: str) -> Picture:
        """The picture whose id or file name was typed.

        Raises:
            ValueError: the text names no image of the data set.
        """
        if not text.strip():
            raise ValueError(f"no image id was given; write for example {self.ids[0]}")
        return self.picture(image_id(text.strip()))

    def questions(self, picture: Picture) -> list[PopeQuestion]:
        """POPE's questions about a picture: random, popular and adversarial; empty where nothing is known of it.

        Up to three objects that are there and as many that are not, for each strategy. Fewer for a picture with
        fewer objects: then the frequencies are those of all pictures with that many.
        """
        known = min(3, len(picture.objects or ()))
        if picture.image_id is None or known == 0:
            return []
        if known not in self._questions:
            objects = {number: self.data.objects[number] for number in self.ids}
            of_image: dict[int, list[PopeQuestion]] = {}
            for question in build_questions(objects, per_image=2 * known):
                if question.image_id is not None:
                    of_image.setdefault(question.image_id, []).append(question)
            self._questions[known] = of_image
        return self._questions[known].get(picture.image_id, [])


def open_pictures(data: str | EvaluationData | None = None) -> PictureBrowser:
    """The pictures of a data set.

    Args:
        data: "scenes:SPLIT", "coco:FOLDER" or a folder in MSCOCO's format; by default scenes of the broken split,
            where objects that usually come together do not, and crowded ones between them.

    Raises:
        ValueError: the name is of no known kind. FileNotFoundError: the folder or its annotations are missing.
    """
    if isinstance(data, EvaluationData):
        return PictureBrowser(data=data)
    if data is None:
        examples, names = example_data()
        return PictureBrowser(data=examples, names=names)
    name = data
    if not name.startswith(("scenes:", "coco:")):
        name = f"coco:{name}"
    return PictureBrowser(data=open_dataset(name, EXAMPLE_COUNT if name.startswith("scenes:") else None))
