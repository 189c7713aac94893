"""Whether left and right mean something in the images of a dataset: what decides if they may be mirrored."""

import numpy as np
from numpy.typing import NDArray

MEANS_SOMETHING = 0.6
"""Share of images told from their mirror images, from which on they should not be mirrored; 0.5 is chance."""


def told_from_mirrored(images_NHWC: NDArray[np.uint8], labels_N: NDArray[np.int64], cells: int = 8) -> float:
    """How often the mean image of a class tells another image of it from that one's mirror image.

    One half of each class gives the mean, the other is judged by it: whether an image, reduced to `cells` x `cells`, is
    closer to the mean than mirrored. Digits, letters, shoes that all face left, and light that always falls from
    one side are told; faces from the front, and animals that face either way, are not.

    Args:
        images_NHWC: (N, H, W, C).
        labels_N: (N,); -1 where there is no class.
        cells: Per side.

    Returns:
        In [0, 1]; 0.5 where no class has two images.
    """
    small_NhwC = _reduced(images_NHWC, cells)
    odd_NF = (small_NhwC - small_NhwC[:, :, ::-1]).reshape(len(images_NHWC), -1)  # changes its sign in the mirror
    right, count = 0.0, 0
    for label in np.unique(labels_N):
        of_class_MF = odd_NF[labels_N == label]
        half = len(of_class_MF) // 2
        if half == 0:
            continue
        for known_MF, judged_MF in ((of_class_MF[:half], of_class_MF[half:]), (of_class_MF[half:], of_class_MF[:half])):
            agreement_M = judged_MF @ known_MF.mean(axis=0)
            right += (agreement_M > 0).sum() + 0.5 * (agreement_M == 0).sum()
            count += len(judged_MF)
    return float(right / count) if count else 0.5


def _reduced(images_NHWC: NDArray[np.uint8], cells: int) -> NDArray[np.float32]:
    """Means over cells, of the central pixels that fill them."""
    count, height, width, channels = images_NHWC.shape
    cells = min(cells, height, width)
    rows, columns = height // cells, width // cells
    top, left = (height - rows * cells) // 2, (width - columns * cells) // 2
    inner = images_NHWC[:, top : top + rows * cells, left : left + columns * cells].astype(np.float32)
    return inner.reshape(count, cells, rows, cells, columns, channels).mean(axis=(2, 4))
