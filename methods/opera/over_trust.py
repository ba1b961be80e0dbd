"""How much a candidate token trusts one earlier token of the answer over the picture: the penalty of OPERA.

N beams, C candidates each, T keys, R tokens of the answer with the candidate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# The least attention that counts; its logarithm stays a number.
LEAST = 1e-30
# The published factor in front of a column's product, and how large a penalty may become.
COLUMN_FACTOR, LARGEST = 1e-7, 1e4
# So many first tokens are rewarded for looking at the picture, and none of them is a place to go back to.
FIRST_TOKENS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Trust:
    """What the rows of candidates say.

    Attributes:
        columns: [N, C, R] for every token of the answer, the sum of ln(scale * a) over the rows from it on.
        picture: [N, C], the share of attention on visual tokens.
    """

    columns: Tensor
    picture: Tensor

    @property
    def strongest(self) -> Tensor:
        """[N, C], the token of the answer with the largest sum."""
        return self.columns.argmax(-1)

    def penalty(self) -> Tensor:
        """[N, C]: minus the picture's share in the first tokens, and then the strongest column's product."""
        if self.columns.shape[-1] <= FIRST_TOKENS:
            return -self.picture
        # The release multiplies in half precision, whose numbers end at 65504; here the logarithm is taken back last.
        return (self.columns.amax(-1).double().exp() * COLUMN_FACTOR).clamp_max(LARGEST).float()


def candidate_rows(rows: Tensor, length: int) -> Tensor:
    """[N, C, length + 1] attention of candidates on what stands before them and on themselves, each row's sum 1.

    Args:
        rows: [N, C, T] the largest weight of any head; behind `length` keys stand those of the C candidates.
        length: how many keys come before the candidates.
    """
    own = rows[..., length:].diagonal(dim1=1, dim2=2)[..., None]
    row = torch.cat((rows[..., :length], own), -1)
    return row / row.sum(-1, keepdim=True)


def trust_of(columns: Tensor, rows: Tensor, visual: Tensor, scale: float) -> Trust:
    """What candidates add to the columns of their beams.

    Args:
        columns: [N, R - 1] of the beams.
        rows: [N, C, P + R] attention of the candidates on the prompt and the answer, each row's sum 1.
        visual: [P] bool.
        scale: the factor of a weight, so that strong columns grow.
    """
    added = (rows[..., visual.shape[0] :].clamp_min(LEAST) * scale).log()
    grown = torch.nn.functional.pad(columns, (0, 1))[:, None] + added
    return Trust(columns=grown, picture=rows[..., : visual.shape[0]][..., visual].sum(-1))
