"""What TensorBoard opens on: charts of what matters; and runs side by side, with how good they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

Charts = Mapping[str, list[str]]
"""Titles, and what each chart shows: regular expressions, which names of values must match from their beginning on."""

_OF_EVERY_RUN: dict[str, Charts] = {
    "speed": {"images per second": ["perf/images_per_second$"]},
    "learning rate": {"learning rate": ["train/lr$"], "norm of the gradient": ["train/grad_norm$"]},
}
# Of all kinds of runs, for TensorBoard asks only one run for the columns of its table. It shows five settings at
# first, and takes those that are said to differ.
_SETTINGS = {
    "data.data_dir": {"type": DATA_TYPE_STRING, "differs": True},
    "data.batch_size": {"type": DATA_TYPE_FLOAT64},
    "model.tokenizer.weights": {"type": DATA_TYPE_STRING},
    "model.transformer.dim": {"type": DATA_TYPE_FLOAT64},
    "model.transformer.depths": {"type": DATA_TYPE_STRING},
    "model.optimizer.lr": {"type": DATA_TYPE_FLOAT64, "differs": True},
    "model.optimizer.base_lr": {"type": DATA_TYPE_FLOAT64},
    "model.guidance.weight": {"type": DATA_TYPE_FLOAT64, "differs": True},
    "trainer.max_steps": {"type": DATA_TYPE_FLOAT64, "differs": True},
    "trainer.precision": {"type": DATA_TYPE_STRING},
    "trainable_parameters": {"type": DATA_TYPE_FLOAT64, "differs": True},
    "seed_everything": {"type": DATA_TYPE_FLOAT64},
}
# And the first five of these.
_NUMBERS = ("test/fid", "test/accuracy", "test/recall", "val/fid_2k", "val/rfid", "val/psnr", "val/loss")


def show_charts(logger: TensorBoardLogger, charts: Mapping[str, Charts]) -> None:
    """Let Custom Scalars show these, and speed and learning rate.

    Args:
        logger: Of the run.
        charts: By category. TensorBoard merges those of several runs by the titles, so that all kinds of runs need the
            same categories in the same order.
    """
    categories = {**charts, **_OF_EVERY_RUN}
    logger.experiment.add_custom_scalars(
        {
            category: {title: ["Multiline", names] for title, names in titled.items()}
            for category, titled in categories.items()
        }
    )


def show_run(logger: TensorBoardLogger, settings: Mapping[str, Any]) -> None:
    """Let HParams show a run as a line of its table, unless it does: where a run goes on, and beside its tests.

    Lightning's record of settings, `hparams.yaml`, tells that.

    Args:
        logger: Of the run.
        settings: All of the run, by dotted names.
    """
    if Path(logger.log_dir, logger.NAME_HPARAMS_FILE).exists():
        return
    shown = {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
    session = SessionStartInfo()
    for name, value in shown.items():
        if isinstance(value, float | int):
            session.hparams[name].number_value = value
        else:
            session.hparams[name].string_value = str(value)
    columns = [HParamInfo(name=name, **kind) for name, kind in _SETTINGS.items()]
    numbers = [MetricInfo(name=MetricName(tag=name)) for name in _NUMBERS]
    table = HParamsPluginData(experiment=Experiment(hparam_infos=columns, metric_infos=numbers))
    for tag, content in (
        (metadata.EXPERIMENT_TAG, table),
        (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=session)),
    ):
        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
        logger.experiment._get_file_writer().add_summary(Summary(value=[value]))
    logger.hparams = shown
    logger.save()
