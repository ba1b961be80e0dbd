"""How tokens are chosen."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Decoding(BaseModel):
    """How tokens are chosen. Greedy by default; everything else of the checkpoint's generation settings stays."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    do_sample: bool = Field(
        default=False,
        description="Draw tokens at random. (default: greedy)",
        json_schema_extra={"flag": "--sample/--greedy"},
    )
    temperature: float = Field(default=1.0, gt=0, description="With --sample.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="With --sample.")
    num_beams: int = Field(default=1, ge=1, description="Beam search.")

    def arguments(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        sampling: dict[str, float | None]
        if self.do_sample:
            sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        else:
            sampling = {"temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": self.do_sample, "num_beams": self.num_beams, **sampling}


# What a run sets itself, whatever a checkpoint says.
_OURS = frozenset({"do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "max_length"})


@dataclass(frozen=True, kw_only=True)
class CheckpointDecoding:
    """What a checkpoint's own generation settings add to a run's.

    Attributes:
        kept: the settings that `generate` follows beside the run's.
        ends: the tokens that end an answer.
    """

    kept: dict[str, Any]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, generation_config: Any) -> "CheckpointDecoding":
        """From transformers' `GenerationConfig`."""
        kept = {
            key: value
            for key, value in generation_config.to_diff_dict().items()
            if key not in _OURS and key != "transformers_version" and not key.startswith("_")
        }
        ends = generation_config.eos_token_id
        found = ends if isinstance(ends, list | tuple) else [] if ends is None else [ends]
        return cls(kept=kept, ends=tuple(found))
