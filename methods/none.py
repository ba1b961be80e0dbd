"""No method: the plain model, for comparisons."""

from dataclasses import dataclass

from vlm_guard.method import Method, register


@register("none")
@dataclass(frozen=True, kw_only=True)
class PlainModel(Method):
    """The model as it is. A guard with this method changes nothing and costs nothing."""

    title = "none"
    paper = "the unmodified model"
    compiles = True
