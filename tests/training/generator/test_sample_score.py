"""Samples that are measured while a generator trains, and the best checkpoint by them."""

import json
from pathlib import Path

import pytest
import torch
from data_fixtures import write_images
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_generator_module import DECAY, assert_equal_states, fit, load, make_module, make_trainer
from test_tokenizer_module import make_module as make_tokenizer_module

from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.metric import SampleMetric
from scalear.training.checkpoints import BestCheckpoint
from scalear.training.ema import EMA
from scalear.training.generator.report import SampleReport
from scalear.training.generator.sample_score import GeneratedSet, SampleScore
from scalear.training.generator.samples import SampleRequest
from scalear.training.guarded_module import NonFiniteLossError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Images of 8x8."""
    directory = tmp_path_factory.mktemp("images")
    write_images(directory)
    return directory


@pytest.fixture(scope="module")
def report(dataset, tmp_path_factory) -> SampleReport:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_classifier(path, ImageClassifier(1, 3, 8, widths=(4, 6, 8)), {})
    return SampleReport(ClassifierFeatures(str(path), num_features=8), str(dataset))


def score_in(folder: Path, every_n_steps: int = 2, count: int = 12) -> SampleScore:
    callback = SampleScore(every_n_steps, count)
    callback.dirpath = str(folder)
    return callback


def logged(folder: Path, name: str = "val/fid_12") -> dict[int, float]:
    """What a run logged, by step."""
    return {event.step: event.value for event in EventAccumulator(str(folder)).Reload().Scalars(name)}


class Endless(SampleMetric):
    """Gives no number."""

    numbers = ("endless",)

    def __call__(self, real, fake) -> dict[str, float]:
        return {"endless": float("inf")}


class Drawing(SampleMetric):
    """Takes numbers from PyTorch's own generator."""

    numbers = ("drawn",)

    def __call__(self, real, fake) -> dict[str, float]:
        return {"drawn": torch.rand(()).item()}


def test_the_score_is_that_of_test_and_training_does_not_notice(dataset, report, tmp_path, caplog):
    loggers = [TensorBoardLogger(tmp_path, name="", version=""), CSVLogger(tmp_path, name="csv", version="")]
    # The average is that of the finished step wherever it is listed, and it matters not which steps others log.
    settings = {"logger": loggers, "log_every_n_steps": 50, "accumulate_grad_batches": 2}
    callbacks = [score_in(tmp_path), EMA(DECAY)]
    drawing = SampleReport(report.extractor, str(dataset), more_metrics=[Drawing()])
    fit(dataset, tmp_path / "scored", 5, module=make_module(report=drawing), callbacks=callbacks, **settings)
    drawn = torch.get_rng_state()
    fit(dataset, tmp_path / "alone", 5, callbacks=[EMA(DECAY)], accumulate_grad_batches=2)
    assert torch.equal(drawn, torch.get_rng_state())
    scored, alone = (load(tmp_path / name / "end.ckpt") for name in ("scored", "alone"))
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert_equal_states(scored[part], alone[part])
    for one, other in zip(*(end["optimizer_states"][0]["state"].values() for end in (scored, alone)), strict=True):
        assert_equal_states(one, other)

    scores = logged(tmp_path)
    assert list(scores) == [2, 4, 5] and "val/fid_12" in (tmp_path / "csv/metrics.csv").read_text()
    for name in ("val/texture_12", "val/is_12", "val/accuracy_12", "perf/fid_seconds", "perf/fid_share"):
        assert list(logged(tmp_path, name)) == [2, 4, 5]
    assert 0 < logged(tmp_path, "perf/fid_share")[4] < 1
    assert "fid of 12 samples is biased upwards" in caplog.text
    assert f"val/fid_12 {scores[4]:.4g} at step 4 (the best: {min(scores.values()):.4g}), measured in" in caplog.text

    best = load(tmp_path / "best.ckpt")
    assert best["global_step"] == min(scores, key=scores.get)
    resumed = tmp_path / "resumed"
    fit(dataset, resumed, 5, tmp_path / "best.ckpt", callbacks=[EMA(DECAY)], accumulate_grad_batches=2)
    assert_equal_states(load(resumed / "end.ckpt")["current_model_state"], alone["current_model_state"])
    module = make_module(report=report, samples=SampleRequest(num_per_class=4))
    make_trainer(tmp_path, callbacks=[EMA(DECAY)]).test(module, ckpt_path=tmp_path / "best.ckpt", verbose=False)
    tested = json.loads((tmp_path / "metrics.json").read_text())
    assert tested["fid"] == pytest.approx(min(scores.values()), rel=1e-4)


def test_the_count_is_in_the_name():
    names = {count: SampleScore(count=count).monitor for count in (2000, 10_000, 500, 2500)}
    assert names == {2000: "val/fid_2k", 10_000: "val/fid_10k", 500: "val/fid_500", 2500: "val/fid_2500"}


def test_the_last_step_is_measured_and_may_be_the_best(dataset, report, tmp_path):
    callbacks = [score_in(tmp_path, every_n_steps=10), EMA(DECAY)]
    fit(
        dataset,
        tmp_path,
        3,
        module=make_module(report=report),
        callbacks=callbacks,
        logger=TensorBoardLogger(tmp_path, "", ""),
    )
    assert list(logged(tmp_path)) == [3]
    best, end = (load(tmp_path / f"{name}.ckpt") for name in ("best", "end"))
    for part in ("state_dict", "current_model_state"):
        assert_equal_states(best[part], end[part])


def test_labels_are_those_of_test_over_and_over():
    samples = GeneratedSet(make_module(samples=SampleRequest(num_per_class={1: 2, 0: 1})), 5)
    assert samples.labels.tolist() == [1, 0, 1, 1, 0]


def test_a_dry_run_measures_nothing(dataset, report, tmp_path):
    fit(dataset, tmp_path, 1, module=make_module(report=report), callbacks=[score_in(tmp_path, 1)], fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_finite_is_no_score(dataset, report, tmp_path):
    broken = SampleReport(report.extractor, str(dataset), more_metrics=[Endless()])
    with pytest.raises(NonFiniteLossError, match="at step 1 endless is inf, and is not written"):
        fit(dataset, tmp_path, 1, module=make_module(report=broken), callbacks=[score_in(tmp_path, 1)])
    assert not (tmp_path / "best.ckpt").exists()


def test_a_run_without_the_network_says_so_and_measures_nothing(dataset, tmp_path, caplog):
    absent = SampleReport(ClassifierFeatures("absent"), str(dataset))
    fit(dataset, tmp_path, 1, module=make_module(report=absent), callbacks=[score_in(tmp_path, 1)])
    assert "val/fid_12 is not measured, and no best.ckpt kept: there is no absent, the network of" in caplog.text
    assert not (tmp_path / "best.ckpt").exists()


def test_what_cannot_be_measured_is_refused_before_training(dataset, report, tmp_path):
    with pytest.raises(ValueError, match="need every_n_steps >= 1 and count >= 2, got 5 and 1"):
        SampleScore(5, 1)
    with pytest.raises(ValueError, match="measures as model.report says, which is null: set it, or remove"):
        fit(dataset, tmp_path, 1, callbacks=[SampleScore()])
    (tmp_path / "damaged").write_text("")
    damaged = SampleReport(ClassifierFeatures(str(tmp_path / "damaged")), str(dataset))
    with pytest.raises(ValueError, match="damaged.*; or train without SampleScore in trainer.callbacks"):
        fit(dataset, tmp_path, 1, module=make_module(report=damaged), callbacks=[SampleScore()])
    with pytest.raises(ValueError, match="for generators, not for a TokenizerModule: remove it"):
        make_trainer(tmp_path, callbacks=[SampleScore()], max_steps=1).fit(make_tokenizer_module())
    both = [SampleScore(), BestCheckpoint("val/loss")]
    with pytest.raises(ValueError, match="SampleScore and BestCheckpoint, which all keep best.ckpt"):
        fit(dataset, tmp_path, 1, module=make_module(report=report), callbacks=both)
