"""CARVE: contrastive attention refinement for visual enhancement (arXiv 2509.06461, ECCV 2026).

What a question asks for differs from what draws the eye anyway. The model is asked twice about the picture, once the
question and once for a general description. Where it looks for the question but not for the description is cut out,
magnified, and shown to the model for the answer. With a[l, t] the attention of the row that predicts token t, mean over
heads, in layer l, and j a visual token:

    contrast  A_j = a_question,j / (a_general,j + lambda), per layer and step
    fuse      S   = sum over t of w_t, sum over l of A[l, t] enlarged to the picture (bilinear);  w_t = t - t_start + 1
    mask      M   = S >= the (1 - p) quantile of S; of its n connected regions the max(K, int(n p)) of largest sum of S
    refine    black outside them, cut to their box, magnified by max(W / w, H / h) with LANCZOS

Station: inputs. The answer is then generated from the refined picture alone or from both, with whatever other methods.

Where the values come from: layers 20 to 25 (of 28 to 36; given here as a share of the depth), p 0.2, K 3, lambda 1e-8,
32 steps, the general instruction and the suffix are the released code's. The code answers from both pictures
(`variant="published"`), the paper from the refined one, which is the default. The paper finds p of 0.2 to 0.6 and K of
2 or 3 best. `outside="shown"` is this project's: a model that has seen few pictures with black in them names things in
them that are not there (docs/results.md). Code defects left out: maps are laid out on the true patch grid (the code
guesses squares from token counts), and steps decode with a cache. The magnified side is limited to four times the
picture's longer side, so that a sliver does not explode.

Cost: before the answer itself, the bare model reads the prompt once more with the question and, from where it
differs, with the general request; both answers, of up to `steps` tokens, are rows of the same decoding passes. With
`steps=1` both readings end behind the last layer they need. Pictures: give `generate(..., images=[...])` the
originals; without them they are recovered from the pixel inputs at the model's resolution (exact, but magnifying adds
no detail then), where the processor resizes all pictures to one size. Models that cut images into tiles are refused.
Only a question behind the image is found. Maps and boxes stay in `guard.findings("carve").images` for plots.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_guard.method import (
    BranchPrompt,
    Finding,
    FindingsCall,
    GivenPrompt,
    GuardTarget,
    InputsCall,
    Method,
    PictureMap,
    ReplacedPicture,
    answer_opening,
    flat_pictures,
    option,
    padding_id,
    place_images,
    recover_pictures,
    register,
    require_grid,
    seen_part,
    select_attending_layers,
    variant_option,
    visual_mask,
)
from vlm_guard.methods.carve.contrastive_map import contrast_steps, refine_picture
from vlm_guard.methods.carve.image_splice import splice_pictures
from vlm_guard.methods.shared.question_tokens import with_question


@register("carve")
@dataclass(frozen=True, kw_only=True)
class CARVE(Method):
    """Show the model a magnified picture of what only the question makes it look at."""

    title = "CARVE"
    paper = "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning, ECCV 2026, arXiv 2509.06461"
    stations = ("inputs",)
    needs = ("processor",)
    cross_attention = "it looks for the regions of a picture in attention on the prompt's visual tokens"
    compiles = True

    share: float = option(
        0.2,
        help="share of the picture's area that may be kept; 1 keeps everything",
        range=(0.01, 1.0),
        neutral=1.0,
        paper="p = 0.2 in the code; 0.2 to 0.6 work best in the paper",
    )
    regions: int = option(3, help="connected regions that are kept at least", range=(1, 100), paper="K = 3 in the code")
    final_inputs: str = option(
        "refined",
        help="answer from the refined picture alone, or from both",
        choices=("refined", "both"),
        paper="refined in the paper, both in the code",
        published="both",
    )
    outside: str = option(
        "black",
        help="what becomes of the picture between the kept regions, within their box: black, or shown as it is",
        choices=("black", "shown"),
        paper="black in the code",
    )
    steps: int = option(
        32,
        help="answer tokens whose attention is contrasted",
        range=(1, 512),
        paper="at most 32 in the code",
    )
    general_instruction: str = option(
        "Write a general description of the image.", help="the request to contrast with", paper="as in paper and code"
    )
    suffix: str = option(
        "Answer the question using a single word or phrase.",
        help="added to both requests in the two passes",
        paper="in the code",
    )
    layers: str = option("62%-81%", help="decoder layers whose attention is contrasted", paper="20 to 25 in both")
    variant: str = variant_option("published answers from both pictures, as the code; default from the refined one")

    def prepare(self, target: GuardTarget) -> None:
        """Nothing to keep.

        Raises:
            ValueError: the model's visual tokens form no grid.
        """
        require_grid(target.model.config, self.name)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """Those of `layers` that have attention.

        Raises:
            ValueError: none has.
        """
        layers = select_attending_layers(self.layers, target)
        if not layers:
            raise ValueError(f"carve: layers {self.layers!r} select no layer with attention in this model")
        return layers

    def edit_inputs(self, call: InputsCall) -> dict[str, Any] | None:
        """Refine every picture of the prompt, and put the new ones in."""
        inputs, target = call.inputs, call.guard.target
        if self.share == 1 or not isinstance(inputs.get("input_ids"), Tensor):
            return None
        prompt = _prompt_of(inputs, target)
        visual = visual_mask(prompt.input_ids, prompt.visual_token_ids)
        if not bool(visual.any()):
            return None
        settings = target.processor.image_processor
        if call.images is None:
            pictures = recover_pictures(inputs, target.processor, self.name)
        else:
            pictures = [seen_part(picture, settings) for picture in flat_pictures(call.images)]
        placed = place_images(target.model, inputs, visual, self.name)
        if len(placed) != len(pictures):
            raise ValueError(f"carve: {len(pictures)} pictures were given for the {len(placed)} images of this prompt")
        asked = tuple(self._asked(target, prompt, text) for text in (None, self.general_instruction))
        layers = self.active_layers(target)
        question, general = call.paired_attention(prompt, asked, inputs, layers, self.steps)
        found = []
        for image, picture in zip(placed, pictures):
            pair = (rows[image.row][..., image.places] for rows in (question, general))
            contrast = contrast_steps(*pair).view(image.grid).numpy()
            blacken = self.outside == "black"
            found.append(refine_picture(image, picture, contrast, self.share, self.regions, blacken=blacken))
        call.findings.images = found
        return splice_pictures(
            prompt,
            inputs,
            placed,
            pictures,
            [item.refined for item in found],
            target.model,
            target.processor,
            keep=self.final_inputs == "both",
        )

    def findings(self, call: FindingsCall) -> list[Finding]:
        """The contrast map of the first picture, and what was made of it."""
        images = getattr(call.kept, "images", None)
        if not images:
            return []
        image = images[0]
        return [
            PictureMap(
                title="CARVE: contrast map",
                text="Bright where the question draws more attention than a general description does.",
                values=image.contrast,
            ),
            ReplacedPicture(
                title="CARVE: refined picture",
                text=f"{100 * float(image.kept.mean()):.0f} % of the picture is kept and magnified; the guarded answer "
                "is about this.",
                picture=image.refined,
            ),
        ]

    def _asked(self, target: GuardTarget, prompt: GivenPrompt, instead: str | None) -> BranchPrompt:
        """The prompt of a pass: with the question, or with another request."""

        def rewrite(question: str) -> str:
            return " ".join(part for part in (instead or question, self.suffix) if part)

        opening = answer_opening(target.processor)
        return with_question(prompt, target.processor.tokenizer, opening, rewrite, self.name)


def _prompt_of(inputs: dict[str, Any], target: GuardTarget) -> GivenPrompt:
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    visual = target.architecture.visual_token_ids
    mask = ids.new_ones(ids.shape) if mask is None else mask
    pad_id = padding_id(target.model, target.processor, visual)
    return GivenPrompt(input_ids=ids, attention_mask=mask, visual_token_ids=visual, pad_id=pad_id)
