"""Trains the small classifier whose features measure FID offline."""

from dataclasses import asdict

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

import scalear
from scalear.data.batch import Batch
from scalear.evaluation.classifier import ImageClassifier, load_classifier, save_classifier
from scalear.training.guarded_module import GuardedModule
from scalear.training.optim import OptimizerSettings
from scalear.training.run_length import run_length


class ClassifierModule(GuardedModule):
    """Cross-entropy training, accuracy in validation and test, and a safetensors file at the end of `fit`.

    `test` measures that file unless it is given a checkpoint.

    Args:
        classifier: Network to train.
        optimizer: AdamW and its schedule.
        export_path: The file to write after training.
    """

    def __init__(self, classifier: ImageClassifier, optimizer: OptimizerSettings, export_path: str) -> None:
        super().__init__()
        self.classifier = classifier
        self.optimizer_settings = optimizer
        self.export_path = export_path
        self.accuracy = MulticlassAccuracy(classifier.num_classes, average="micro")

    def setup(self, stage: str) -> None:
        index = self.trainer.datamodule.index
        wanted = (self.classifier.num_classes, self.classifier.image_channels)
        if (index.num_classes, index.image_channels) != wanted:
            raise ValueError(
                f"dataset {index.name!r} has {index.num_classes} classes and {index.image_channels} channel(s), the "
                f"classifier is built for {wanted[0]} and {wanted[1]}: set model.init_args.classifier accordingly"
            )
        if stage == "test" and self.trainer.ckpt_path is None:
            self.classifier.load_state_dict(load_classifier(self.export_path).state_dict())

    def configure_optimizers(self) -> dict:
        return self.build_optimizer(self.optimizer_settings, self.classifier)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.classifier(batch.inputs).float(), batch.label)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        logits = self.classifier(batch.inputs).float()
        self.accuracy(logits, batch.label)
        options = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": len(batch)}
        self.log(f"{stage}/accuracy", self.accuracy, **options)
        self.log(f"{stage}/loss", F.cross_entropy(logits, batch.label), sync_dist=True, **options)

    def export(self) -> None:
        if not self.trainer.is_global_zero:
            return
        accuracy = self.trainer.callback_metrics.get("val/accuracy")
        measured = None if accuracy is None else round(accuracy.item(), 4)
        data = self.trainer.datamodule
        record = {
            "dataset": data.index.name,
            "class_names": data.index.class_names,
            "train_images": data.index.num_samples("train"),
            "val_accuracy": measured,
            "val_images": data.index.num_samples("val"),
            "batch_size": data.samples_per_step,
            "steps": self.trainer.global_step,
            "precision": self.trainer.precision,
            "optimizer": asdict(self.optimizer_settings.resolve(run_length(self.trainer))),
            "versions": {"scalear": scalear.__version__, "torch": torch.__version__},
        }
        save_classifier(self.export_path, self.classifier, record)
        how_good = "unmeasured" if measured is None else f"{measured:.1%}"
        rank_zero_info(f"classifier with {how_good} validation accuracy -> {self.export_path}")
