"""Trains the small network whose features measure FID offline."""

from dataclasses import asdict
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric

import scalear
from scalear.data.batch import Batch
from scalear.draws import TRAINING, VALIDATION, SeededDraws
from scalear.evaluation.classifier import ImageClassifier, load_classifier, save_classifier
from scalear.training.classifier_targets import Labels, SameImage, Target
from scalear.training.dashboard import Charts
from scalear.training.guarded_module import GuardedModule
from scalear.training.optim import OptimizerSettings
from scalear.training.run_length import run_length


class ClassifierModule(GuardedModule):
    """Trains a classifier, says in validation and test how often it is right, and writes it when `fit` ends.

    Where the classifier has classes it learns the labels, and elsewhere to find images again. `test` measures the
    file unless it is given a checkpoint.

    Args:
        classifier: Network to train.
        optimizer: AdamW and its schedule.
        export_path: The file to write after training.
        seed: Of the views of images, where there are no classes.
    """

    def __init__(
        self, classifier: ImageClassifier, optimizer: OptimizerSettings, export_path: str, seed: int = 0
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.target: Target = Labels() if classifier.num_classes else SameImage(classifier.num_features)
        self.optimizer_settings = optimizer
        self.export_path = export_path
        self.seed = seed
        self.share_right = MeanMetric()

    @property
    def charts(self) -> dict[str, Charts]:
        return {**super().charts, "quality": {"share of right answers": [f"(val|test)/{self.target.measure}$"]}}

    def setup(self, stage: str) -> None:
        data, network = self.trainer.datamodule, self.classifier
        if data.index.kind != "images":
            raise ValueError(f"a classifier needs images, but {data.folder} holds {data.index.kind}: set data.data_dir")
        if network.image_channels != data.index.image_channels or network.num_classes not in (
            0,
            data.index.num_classes,
        ):
            raise ValueError(
                f"{data.folder} has {data.index.num_classes} classes and {data.index.image_channels} channel(s), the "
                f"classifier is built for {network.num_classes} and {network.image_channels}: leave these out of "
                "model.init_args.classifier"
            )
        if stage == "test" and self.trainer.ckpt_path is None:
            self.classifier.load_state_dict(load_classifier(self.export_path).state_dict())

    def configure_optimizers(self) -> dict:
        return self.build_optimizer(self.optimizer_settings, [self.classifier, self.target])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.target.loss(self.classifier, batch, self._draws(batch, TRAINING))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def export(self) -> None:
        if not self.trainer.is_global_zero:
            return
        share = self.trainer.callback_metrics.get(f"val/{self.target.measure}")
        measured = None if share is None else round(share.item(), 4)
        data = self.trainer.datamodule
        is_beside = Path(self.export_path).resolve().parent == Path(data.folder).resolve()
        record = {
            "dataset": data.index.name,
            "class_names": data.index.class_names,
            "train_split": data.train_split,
            "checksum": data.index.checksum(data.train_split) if is_beside else None,  # see `check_beside`
            "train_images": data.index.num_samples(data.train_split),
            f"val_{self.target.measure}": measured,
            "val_images": data.index.num_samples(data.val_split),
            "batch_size": data.samples_per_step,
            "steps": self.trainer.global_step,
            "precision": self.trainer.precision,
            "optimizer": asdict(self.optimizer_settings.resolve(run_length(self.trainer))),
            "versions": {"scalear": scalear.__version__, "torch": torch.__version__},
        }
        save_classifier(self.export_path, self.classifier, record)
        how_good = "unmeasured" if measured is None else f"{measured:.1%}"
        rank_zero_info(f"classifier, {self.target.measure} in validation {how_good} -> {self.export_path}")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        right_B = self.target.right(self.classifier, batch, self._draws(batch, VALIDATION))
        self.share_right(right_B.float())
        options = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": len(batch)}
        self.log(f"{stage}/{self.target.measure}", self.share_right, **options)
        loss = self.target.loss(self.classifier, batch, self._draws(batch, VALIDATION))
        self.log(f"{stage}/loss", loss, sync_dist=True, **options)

    def _draws(self, batch: Batch, stream: int) -> SeededDraws:
        return SeededDraws.of_batch(self.seed, stream, batch.position, self.device)
