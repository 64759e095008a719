"""Which tokens the nodes of a draft tree may look at: the kernels behind `decoding.masks`.

They stand here, where nothing imports torch, to be compiled with all the others.
"""

import numpy as np
import numpy.typing as npt

from hdraft.drafting.kernel import kernel
from hdraft.drafting.tree import DraftTree

UNBOUNDED = 2**62


@kernel
def fill_mask(
    mask: npt.NDArray[np.bool_],
    cached: int,
    offered: int,
    text: int,
    parents: npt.NDArray[np.int32],
    depths: npt.NDArray[np.int32],
    size: int,
    chunked: bool,
    padding: int,
) -> None:
    """Fill the zeroed bool[m + n, k + m + n] of `decoding.masks.tree_mask`; `offered` is its k."""
    origin = cached - offered  # the position of column 0
    root = cached + text - 1  # the position of the last text token
    for row in range(mask.shape[0]):
        node = row - text
        position = cached + row if node < 0 else root + depths[node]
        earliest = _earliest(position, size, chunked, padding)
        for column in range(max(earliest - origin, 0), offered + min(row + 1, text)):
            mask[row, column] = True
        while node >= 0 and root + depths[node] >= earliest:
            mask[row, offered + text + node] = True
            node = parents[node]


@kernel
def fill_padded_mask(
    earliest: npt.NDArray[np.int64],
    among: npt.NDArray[np.bool_],
    cached: int,
    dropped: int,
    parents: npt.NDArray[np.int32],
    depths: npt.NDArray[np.int32],
    size: int,
    chunked: bool,
    padding: int,
) -> None:
    """Fill `earliest` and `among`: see `decoding.masks.padded_rows`."""
    among[:] = False
    for row in range(len(earliest)):
        node = row - 1
        if node >= len(parents):
            among[row, 0] = True
            earliest[row] = UNBOUNDED
            continue
        first = _earliest(cached if node < 0 else cached + depths[node], size, chunked, padding)
        earliest[row] = max(first, padding) - dropped
        while node >= 0 and cached + depths[node] >= first:
            among[row, 1 + node] = True
            node = parents[node]
        if node < 0 and cached >= first:
            among[row, 0] = True


@kernel
def _earliest(position: int, size: int, chunked: bool, padding: int) -> int:
    return (position - padding) // size * size + padding if chunked else position - size + 1


def warm_up() -> None:
    """Have the kernels compiled, or loaded."""
    tree = DraftTree([0], [-1])
    fill_mask(np.zeros((2, 2), np.bool_), 0, 0, 1, tree.parents, tree.depths, UNBOUNDED, False, 0)
    earliest, among = np.zeros(2, np.int64), np.zeros((2, 2), np.bool_)
    fill_padded_mask(earliest, among, 0, 0, tree.parents, tree.depths, UNBOUNDED, False, 0)
