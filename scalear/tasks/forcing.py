"""What is known of an image, as codes at every scale: the tokens that editing forces (FlexVAR section 4.4).

Legend: B batch, C latent channels, h w the latent of the whole canvas, l tokens of one scale.
"""

import torch.nn.functional as F
from torch import Tensor

from scalear.pyramid import CodePyramid
from scalear.scales import ScaleSchedule

Known = tuple[Tensor, Tensor]
"""Codes (B, l) int64 of a scale, and where they are known, (B, l) bool."""


def known_codes(
    pyramid: CodePyramid, latent_BChw: Tensor, missing_B1hw: Tensor, schedule: ScaleSchedule, threshold: float
) -> list[Known | None]:
    """Ground-truth codes of the known part of a latent, and the cells of each scale that they hold for.

    A cell of a coarse scale is generated where the area-averaged mask exceeds the threshold, else forced. Its code is
    that of the area average over what is known: where nothing is missing exactly what training would have forced,
    and what a mask hides does not reach the cells beside it.

    Args:
        pyramid: Of the model.
        latent_BChw: Latent of the canvas; its values where all is missing do not matter.
        missing_B1hw: Share of each cell that is missing, in [0, 1].
        schedule: Scales that are generated. Those finer than the latent in a side are not forced at all.
        threshold: Share of a cell in [0, 1) above which it is generated.

    Returns:
        Per scale codes and where they are known, or None for scales that are not forced; as `Generator.generate` takes.
    """
    height, width = latent_BChw.shape[-2:]
    known_B1hw = 1 - missing_B1hw
    forced: list[Known | None] = []
    for size in schedule.sizes:
        if size[0] > height or size[1] > width:
            forced.append(None)
            continue
        mean_BChw = latent_BChw
        if size != (height, width):
            weight_B1hw = F.adaptive_avg_pool2d(known_B1hw, size)
            mean_BChw = F.adaptive_avg_pool2d(latent_BChw * known_B1hw, size) / weight_B1hw.clamp(min=1e-6)
        keep_B1hw = F.adaptive_avg_pool2d(missing_B1hw, size) <= threshold
        forced.append((pyramid.quantizer.codes(mean_BChw), keep_B1hw.flatten(1)))
    return forced
