"""What is refused leaves a folder as it was: the last thing that may refuse comes before the first file."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from cli_fixtures import Experiment, run

from scalear.data.index import DatasetIndex


@pytest.fixture(scope="module")
def unlabelled(experiment: Experiment, tmp_path_factory) -> Path:
    """The images, without labels."""
    folder = shutil.copytree(experiment.images, tmp_path_factory.mktemp("unlabelled") / "images")
    dataclasses.replace(DatasetIndex.load(folder), class_names=[]).save(folder)
    return folder


CALLBACK = "--trainer.callbacks+=lightning.pytorch.callbacks."
CSV = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir={folder}"]
# Who refuses, the command, and what is typed.
REFUSALS = {
    "weights of the tokenizer": ("fit", ["--model.tokenizer.weights=absent"], "no tokenizer weights at absent"),
    "scales": ("fit", ["--model.transformer.scales=[1,2]"], "1,2 end at 2 tokens"),
    "classes": (
        "fit",
        ["--data.data_dir={unlabelled}", "--data.latents_dir=null", "--model.transformer.num_classes=3"],
        "has no labels, and a generator of 3 classes",
    ),
    "global batch": ("fit", ["--data.global_batch=7"], "data.global_batch is 7, but"),
    "a batch too large": ("fit", ["--data.batch_size=999"], "is larger than the 36 samples of split 'train'"),
    "a split": ("fit", ["--data.val_split=nosuch"], "has no split 'nosuch'"),
    "reloading": ("fit", ["--trainer.reload_dataloaders_every_n_epochs=2"], "must be 1"),
    "a callback": ("fit", ["--trainer.callbacks+=CodebookCare"], "CodebookCare is for tokenizers"),
    "with another logger": ("fit", [*CSV, "--trainer.callbacks+=CodebookCare"], "CodebookCare is for tokenizers"),
    "a finder": ("fit", [CALLBACK + "BatchSizeFinder"], "BatchSizeFinder would change the batch"),
    "another finder": ("fit", [CALLBACK + "LearningRateFinder"], "set model.optimizer.lr"),
    "accumulation": (
        "fit",
        [
            CALLBACK + "GradientAccumulationScheduler",
            "--trainer.callbacks.scheduling={{0: 1, 2: 4}}",
            "--data.global_batch=8",
        ],
        "global_batch is 8, and GradientAccumulationScheduler changes it",
    ),
    "accumulation twice": (
        "fit",
        [
            CALLBACK + "GradientAccumulationScheduler",
            "--trainer.callbacks.scheduling={{0: 1, 2: 4}}",
            "--trainer.accumulate_grad_batches=2",
        ],
        "leave out one of them",
    ),
    "no accumulation": (
        "fit",
        [CALLBACK + "GradientAccumulationScheduler", "--trainer.callbacks.scheduling={{0: 4}}"],
        "set trainer.accumulate_grad_batches to 4 instead",
    ),
    "the optimizer": (
        "fit",
        ["--model.optimizer.schedule=cosine", "--trainer.max_steps=-1", "--trainer.max_epochs=-1"],
        "set optimizer.total_steps",
    ),
    "the stream": ("fit", ["--ckpt_path={flowar}", "--data.seed=5"], "was trained on data with seed 0"),
    "labels": ("predict", ["--ckpt_path={flowar}", "--model.samples.classes=[0,4]"], "label 4 is out of range"),
    "a part of the samples": ("test", ["--ckpt_path={flowar}", "--trainer.limit_test_batches=1"], "leave out samples"),
    "the report": ("test", ["--ckpt_path={flowar}", "--model.report.data_dir=absent"], "there is nothing at absent"),
    "data to validate": ("validate", ["--ckpt_path={flowar}", "--data.val_split=nosuch"], "has no split 'nosuch'"),
    "the fingerprint": (
        "predict",
        ["--ckpt_path={flowar}", "--model.tokenizer.weights=null"],
        "was trained on latents of a tokenizer with fingerprint",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_of_a_generator_leaves_nothing(experiment: Experiment, unlabelled, tmp_path, what, capsys):
    command, typed, message = REFUSALS[what]
    folder = tmp_path / "run"
    places = {"flowar": experiment.checkpoint("flowar"), "unlabelled": unlabelled, "folder": folder}
    assert run(command, *experiment.generator(folder), *(option.format(**places) for option in typed)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "command, typed, message",
    [
        ("fit", ["--data.data_dir={latents}"], "a tokenizer needs images"),
        ("fit", ["--model.begin_from=absent"], "no weights at absent to begin from"),
        ("fit", ["--trainer.callbacks+=SampleGrid"], "SampleGrid is for generators"),
        ("predict", ["--ckpt_path={kl}", "--data.predict_splits=[nosuch]"], "has no split 'nosuch'"),
        ("predict", ["--ckpt_path={kl}", "--trainer.callbacks=[{writer}]"], "holds a finished dataset"),
        ("test", ["--ckpt_path={kl}", "--model.rfid.extractor.weights=absent"], "absent"),
    ],
)
def test_a_refusal_of_a_tokenizer_leaves_nothing(experiment: Experiment, tmp_path, command, typed, message, capsys):
    writer = f"{{class_path: LatentWriter, init_args: {{output_dir: {experiment.latents}}}}}"
    places = {"latents": experiment.latents, "kl": experiment.checkpoint("kl"), "writer": writer}
    folder = tmp_path / "run"
    assert run(command, *experiment.tokenizer(folder), *(option.format(**places) for option in typed)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))
