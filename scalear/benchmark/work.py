"""Arithmetic per image: the official code's where it was counted, else the plain path's by torch's counter."""

from collections.abc import Callable
from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

# TFLOP per image of the official code, by job, name of the config and whether pixels are decoded. Settings are the
# config's own: FlowAR-S with 24 Euler steps and guidance 4.3 from t = 0.1 on, VAR-d16, FlexVAR-d16 with 10 scales.
_OFFICIAL = {
    ("train", "imagenet256/flowar", False): 0.271,
    ("sample", "imagenet256/flowar", False): 1.45,
    ("train", "imagenet256/var", False): 0.84,
    ("sample", "imagenet256/var", True): 0.96,
    ("sample", "imagenet256/flexvar", True): 0.83,
    ("sample", "imagenet256/flexvar", False): 0.58,
}


@dataclass(frozen=True)
class Work:
    """What an image costs.

    Attributes:
        tflop: Per image; a multiply-add counts two. None where work is not arithmetic.
        source: Where the number comes from.
    """

    tflop: float | None
    source: str


def official_work(job: str, config: str, decoder: bool) -> Work | None:
    """The official code's work for a config that is used as it stands, None where it was not counted."""
    tflop = _OFFICIAL.get((job, config, decoder))
    return None if tflop is None else Work(tflop, "official code")


def counted_work(run: Callable[[], object], images: int) -> Work:
    """Run once and count matrix products, attention and convolutions.

    Args:
        run: The job with plain modules (`scalear.fast` does nothing).
        images: Images it handles.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return Work(counter.get_total_flops() / images / 1e12, "plain path, torch flop counter")
