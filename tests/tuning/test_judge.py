"""Settings are compared by the same labels and noise, and by one half of the real images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_fixtures import NUM_CLASSES, make_model, randomise

from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.evaluate import default_metrics
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.image_set import ArraySet
from scalear.evaluation.kid import KernelDistance
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.tuning.judge import SECONDS, SettingsJudge
from scalear.tuning.space import Settings

SETTINGS = Settings(Guidance(2.0), FlowSolver("euler", 2))


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> SettingsJudge:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_classifier(path, ImageClassifier(1, NUM_CLASSES, 8, widths=(4, 6, 8)), {})
    model = randomise(make_model(scales="1,2,4,8", channels=1)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    real = ArraySet(pixels, np.arange(60) % NUM_CLASSES, "val")
    extractor = ClassifierFeatures(str(path), num_features=8)
    made = SettingsJudge(
        model, model.schedule, real, extractor, default_metrics(), torch.arange(24) % NUM_CLASSES, 8, "32-true"
    )
    return replace(made, metrics=made.metrics_for("accuracy"))


def numbers(judge, settings=SETTINGS):
    found = judge(settings)
    assert found.pop(SECONDS) > 0
    return found


def test_the_same_settings_give_the_same_numbers(judge):
    first = numbers(judge)
    assert list(first) == ["accuracy", "fid", "precision", "recall", "density", "coverage"]
    assert numbers(judge) == first
    assert numbers(replace(judge, batch_size=5)) == pytest.approx(first, abs=0.05)  # rounding of pixels
    stronger = numbers(judge, SETTINGS.changed({"model.guidance.weight": 6.0}))
    assert stronger["fid"] != pytest.approx(first["fid"], rel=0.01)


def test_noise_and_real_images_are_chosen(judge):
    fids = [numbers(each)["fid"] for each in (judge, replace(judge, seed=1), replace(judge, half=1))]
    assert len(set(fids)) == 3


@pytest.mark.parametrize(
    "number, message",
    [
        ("fad", "there is no metric 'fad'; there are fid, sfid, texture, is"),
        ("sfid", "sfid cannot be measured: .* gives no spatial features"),
        ("is_std", "--metric is_std cannot be searched for: it tells spread"),
        ("kid", "--metric kid cannot be searched for: it does not say which way is `better`"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(judge, number, message, monkeypatch):
    monkeypatch.setattr(KernelDistance, "better", None)
    with pytest.raises(ValueError, match=message):
        replace(judge, metrics=default_metrics()).metrics_for(number)


def test_all_metrics_that_everybody_sees_can_be_searched_for():
    assert {metric.better for metric in default_metrics()} == {"lower", "higher"}


def test_too_few_images_are_refused(judge):
    few = replace(judge, metrics=default_metrics(), label_N=judge.label_N[:3])
    with pytest.raises(
        ValueError, match="recall cannot be measured: it needs at least 4 samples, and --num_samples has 3"
    ):
        few.metrics_for("recall")
    assert [metric.numbers for metric in few.metrics_for("fid")] == [("fid",)]  # recall is left out
