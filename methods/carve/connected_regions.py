"""Connected regions of a mask, by runs, with numpy alone."""

import numpy as np
from numpy.typing import NDArray


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the regions of a mask whose pixels touch by an edge (4-neighbourhood).

    Args:
        mask: [H, W] bool.

    Returns:
        [H, W] int32, 0 outside the mask and 1 upwards by the first pixel of the region in reading order, and how many.
    """
    labels = np.zeros(mask.shape, dtype=np.int32)
    parent: list[int] = [0]
    above: list[tuple[int, int, int]] = []
    for row in range(mask.shape[0]):
        current = []
        for start, stop in _runs(mask[row]):
            touching = [_root(parent, label) for first, last, label in above if first < stop and start < last]
            label = min(touching, default=len(parent))
            if label == len(parent):
                parent.append(label)
            for other in touching:
                parent[other] = label
            labels[row, start:stop] = label
            current.append((start, stop, label))
        above = current
    roots = [_root(parent, label) for label in range(len(parent))]
    numbers = {root: number for number, root in enumerate(sorted(set(roots)))}
    renumber = np.array([numbers[root] for root in roots], dtype=np.int32)
    return renumber[labels], len(numbers) - 1


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and end of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], line, [False])).astype(np.int8)))
    return [(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2])]


def _root(parent: list[int], label: int) -> int:
    while parent[label] != label:
        parent[label] = label = parent[parent[label]]
    return label
