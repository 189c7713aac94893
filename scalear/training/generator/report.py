"""Numbers of a generator: samples against real images, on the console, in loggers and in metrics.json."""

import functools

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from scalear.distributed.patient_ranks import PatientRanks
from scalear.evaluation.evaluate import choose_metrics, default_metrics, evaluate_samples
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ImageSet
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.protocol import Protocol
from scalear.evaluation.side import Side, floor_of
from scalear.training.loggers import log_text
from scalear.training.run_metrics import write_metrics


class SampleReport:
    """Measures samples as `scalear evaluate` does, with a named extractor, beside the floor of real images.

    Args:
        extractor: Network whose features are compared.
        data_dir: Real images: a dataset, or anything else that `scalear evaluate --reference` takes.
        reference_split: Split of a dataset that samples are compared with; another one gives the floor, if it has as
            many images as there are samples.
        more_metrics: Metrics beside those that everybody sees.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        data_dir: str,
        reference_split: str = "val",
        more_metrics: list[SampleMetric] | None = None,
    ) -> None:
        self.extractor = extractor
        self.data_dir = data_dir
        self.reference_split = reference_split
        self.metrics = [*default_metrics(), *(more_metrics or [])]

    @functools.cached_property
    def reference(self) -> Side:
        """What samples are compared with."""
        return Side.open(self.data_dir, self.reference_split)

    def check(self, image_size: tuple[int, int]) -> None:
        """Find out before anything is sampled what would end the measurement of (H, W) images after it.

        Raises:
            ValueError: A file is missing, or the size of the real images is not that of the samples.
        """
        _ = self.extractor.network
        real = self.reference
        real.check(self.extractor)
        if real.image_shape is not None and image_size != real.image_shape[:2]:
            ours, theirs = ("x".join(map(str, size)) for size in (image_size, real.image_shape[:2]))
            raise ValueError(
                f"samples are {ours} pixels, the real images ({real.name}) {theirs}: set model.report.data_dir to such "
                "images, or model.report to null to sample only"
            )

    def measure(self, samples: ImageSet, module: LightningModule, ranks: PatientRanks) -> None:
        """Evaluate samples and report. Runs on all ranks, which share the work."""
        fake, real = Side.of(samples), self.reference
        chosen = choose_metrics(self.metrics, self.extractor, real, fake)
        floor = floor_of(real, len(samples))
        protocol = Protocol(fake, real, self.extractor, chosen, floor, device=module.device)
        scores = evaluate_samples(fake, real, self.extractor, chosen, floor, device=module.device, ranks=ranks)
        rank_zero_info("\n" + protocol.report(scores))
        if ranks.rank == 0:
            write_metrics(module.trainer, protocol.result(scores))
            log_text(module.loggers, "test/line", protocol.line(scores))
        module.log_dict({f"test/{name}": value for name, value in scores.items()}, rank_zero_only=True)
