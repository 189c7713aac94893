"""Any samples against any reference, without a model: `scalear evaluate` and `scalear stats`."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import CLASSIFIER, Experiment, run
from PIL import Image
from torch import Tensor, nn

from scalear.evaluation import extractors
from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ArraySet, ShardSet
from scalear.evaluation.images import save_png, save_samples

FASHION = ("--extractor=fashion", f"--weights={CLASSIFIER}")


def evaluate(tmp_path: Path, samples: str | Path, reference: str | Path, *args: str) -> dict:
    """What `scalear evaluate` writes."""
    path = tmp_path / "numbers.json"
    assert run("evaluate", samples, f"--reference={reference}", *FASHION, f"--json={path}", "--force", *args) == 0
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def val(images) -> ArraySet:
    """The 12 validation images."""
    return ShardSet(images, "val").load()


@pytest.fixture(scope="module")
def sides(images, val, tmp_path_factory) -> dict[str, Path]:
    """The validation images as all that a side may be."""
    root = tmp_path_factory.mktemp("sides")
    save_samples(root / "labelled.npz", val.images, val.labels)
    np.savez(root / "unlabelled.npz", arr_0=val.images)
    for number, image in enumerate(val.images):
        save_png(root / "folder" / f"{number}.png", image)
    assert run("stats", images, root / "statistics.npz", "--split=val", *FASHION) == 0
    arrays = dict(np.load(root / "statistics.npz"))
    others = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 1), np.uint8)
    np.savez(root / "adm.npz", arr_0=others, mu=arrays["mu"], sigma=arrays["sigma"])  # which says nothing of itself
    kinds = ("labelled.npz", "unlabelled.npz", "folder", "statistics.npz", "adm.npz")
    return {"shards": images, **{kind.removesuffix(".npz"): root / kind for kind in kinds}}


@pytest.mark.parametrize("kind", ["labelled", "unlabelled", "folder", "statistics", "adm"])
def test_the_same_images_give_the_same_numbers_as_whatever_they_come(images, sides, tmp_path, kind):
    expected = evaluate(tmp_path, images, images, "--samples_split=train")  # 36 images
    found = evaluate(tmp_path, images, sides[kind], "--samples_split=train")
    same = {"fid", "texture"} if kind in ("statistics", "adm") else {"fid", "kid", "is", "precision", "density"}
    same -= {"texture"} if kind == "adm" else set()
    assert {name: found[name] for name in same} == pytest.approx({name: expected[name] for name in same}, rel=1e-6)
    assert ("precision" in found) == (kind != "statistics")
    assert ("variety_min" in found) == (kind == "labelled")
    if kind == "adm":
        assert found["precision"] != expected["precision"]

    expected = evaluate(tmp_path, images, images, "--reference_split=train")
    found = evaluate(tmp_path, sides[kind], images, "--reference_split=train")
    same -= {"is", "precision", "density"}
    assert {name: found[name] for name in same} == pytest.approx({name: expected[name] for name in same}, rel=1e-6)


def test_the_record_is_whole(images, sides, tmp_path, capsys):
    found = evaluate(tmp_path, sides["labelled"], images)
    printed = capsys.readouterr()
    assert {"fid", "is", "is_std", "kid", "kid_std", "precision", "recall", "density", "coverage"} <= found.keys()
    assert found["fid_floor"] > 0 and found["fid"] == pytest.approx(0, abs=1e-6) and found["precision"] == 1
    line = r"FID-12 0.00, IS [\d.]+, KID [\d.-]+, P/R 1.00/1.00, D/C [\d.]+/1.00 \(ImageClassifier \(\w{8}\), 92.3% of "
    line += r"labels right, trained on fashion-mnist-rest, ref all "
    assert re.fullmatch(line + r"of .* val, measured in float32 on .+, scalear \S+\)", found["line"])
    assert found["line"] in printed.out and "12 samples (labelled.npz) against 12 real images" in printed.out
    assert "real images: 12 others (first 12, class by class, of" in printed.out
    assert "fid: 12 samples leave the covariance of 192 features singular" in printed.err
    assert all(caution in printed.err for caution in found["cautions"])
    protocol = found["protocol"]
    assert protocol["samples"]["images"] == protocol["reference"]["images"] == protocol["floor"]["images"] == 12
    assert protocol["extractor"] == ClassifierFeatures(CLASSIFIER).name and protocol["versions"]["torch"]
    kid = next(metric for metric in protocol["metrics"] if "kid" in metric["numbers"])
    assert (kid["subsets"], kid["subset_size"]) == (100, 1000)
    assert len(protocol["samples"]["sha256"]) == 64

    some = evaluate(tmp_path, sides["labelled"], images, "--metrics", "fid", "kid,recall")
    assert [name for name in some if name in found and isinstance(some[name], float)] == [
        *("fid", "kid", "kid_std", "precision", "recall", "density", "coverage", "fid_floor")
    ]
    intervals = evaluate(tmp_path, sides["labelled"], images, "--bootstrap=20")
    assert intervals["is_low"] < intervals["is"] < intervals["is_high"] and "recall_low" not in intervals
    assert re.match(r"FID-12 0.00 \[-?[\d.]+, [\d.]+\], ", intervals["line"])


def test_a_run_says_how_its_samples_were_made(experiment: Experiment, images, sides, tmp_path):
    folder = tmp_path / "run"
    typed = (*experiment.generator(folder), f"--ckpt_path={experiment.checkpoint('flowar')}")
    typed = (*typed, "--model.sampling.method=euler", "--model.sampling.grid=uniform")
    assert run("predict", *typed) == 0
    shutil.copy(folder / "samples.npz", tmp_path / "elsewhere.npz")  # the record goes with it
    found = evaluate(tmp_path, tmp_path / "elsewhere.npz", images)
    assert ", cfg 4.5, euler 3, EMA, seed 0, sampled in 32-true, measured in" in found["line"]
    assert found["protocol"]["samples"]["origin"]["model.guidance.weight"] == 4.5

    assert run("test", *typed, f"--model.report.data_dir={sides['adm']}") == 0
    tested = json.loads((folder / "metrics.json").read_text())
    assert tested["fid"] == pytest.approx(found["fid"], rel=1e-6) and tested["kid"] != found["kid"]
    assert "ref adm.npz, cfg 4.5, euler 3, EMA, seed 0" in tested["line"]
    assert "there is no floor: no other real images, as many as samples, were at hand" in tested["cautions"]


class Coarse(FeatureExtractor):
    """In the place of Inception: a few averages over the image."""

    kind = "inception"

    def __init__(self, weights: str) -> None:
        super().__init__(weights, num_features=8)

    @property
    def widths(self) -> dict[str, int]:
        return {"pooled": 8, "spatial": 12}

    def _load(self) -> nn.Module:
        return nn.AdaptiveAvgPool2d((4, 5))

    def _features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        averages_BF = self.network(image_BCHW.float()).flatten(1)
        return {"pooled": averages_BF[:, :8], "spatial": averages_BF[:, 8:]}


def test_a_network_with_spatial_features_has_sfid_and_its_statistics(images, tmp_path, monkeypatch):
    monkeypatch.setattr(extractors, "InceptionFeatures", Coarse)
    random = ("--extractor=inception", "--weights=random:0", "--batch_size=6")
    assert run("stats", images, tmp_path / "statistics.npz", "--split=val", *random) == 0
    assert {"mu", "sigma", "mu_s", "sigma_s"} <= np.load(tmp_path / "statistics.npz").keys()
    path = tmp_path / "numbers.json"
    args = ("--samples_split=val", *random, "--metrics", "fid", "sfid", f"--json={path}")
    assert run("evaluate", images, f"--reference={tmp_path / 'statistics.npz'}", *args) == 0
    found = json.loads(path.read_text())
    assert found["fid"] == pytest.approx(0, abs=1e-3) and found["sfid"] == pytest.approx(0, abs=1e-3)
    assert "inception (random weights, seed 0), ref statistics.npz" in found["line"]


def statistics(path: Path, **changed: np.ndarray) -> Path:
    np.savez(path, **{"mu": np.zeros(192), "sigma": np.eye(192)} | changed)
    return path


def bad_sides(root: Path, images: Path, val: ArraySet) -> dict[str, tuple[list, str]]:
    """Arguments, and what is said of them."""
    good, nan = val.images, np.full(192, np.nan)

    def file(name: str, **arrays: np.ndarray) -> Path:
        np.savez(root / name, **arrays)
        return root / name

    def folder(name: str, sizes: list[int]) -> Path:
        for number, size in enumerate(sizes):
            save_png(root / name / f"{number}.png", np.zeros((size, size), np.uint8))
        return root / name

    (folder("broken", [32, 32]) / "1.png").write_bytes(b"no picture")
    (root / "damaged.npz").write_bytes(file("whole.npz", arr_0=good).read_bytes()[:-200])
    save_classifier(root / "other.safetensors", ImageClassifier(1, 10, 32), {})
    assert run("stats", images, root / "others.npz", "--split=val", "--extractor=fashion",
               f"--weights={root / 'other.safetensors'}") == 0  # fmt: skip
    against = [f"--reference={images}"]
    return {
        "layout": ([file("a.npz", arr_0=good.transpose(0, 3, 1, 2)), *against], "must be uint8 (N, H, W, 1 or 3)"),
        "dtype": ([file("b.npz", arr_0=good / 255.0), *against], "holds float64 images"),
        "labels": ([file("c.npz", arr_0=good, arr_1=np.zeros(5, int)), *against], "holds 12 images, but int64 labels"),
        "size": (
            [file("d.npz", arr_0=good[:, ::2, ::2]), *against],
            "samples of 16x16 pixels (d.npz) do not compare with",
        ),
        "mixed sizes": ([folder("mixed", [16, 32, 32]), *against], "0.png is 16x16 pixels"),
        "unreadable": ([root / "broken", *against], "1.png is no image that can be read"),
        "damaged": ([root / "damaged.npz", *against], "damaged.npz is no .npz file that can be read"),
        "nothing": ([root / "nothing.npz", *against], "there is nothing at"),
        "split": ([images, *against, "--reference_split=test"], "test"),
        "other network": ([images, f"--reference={root / 'others.npz'}"], "take that extractor, or write them"),
        "other width": (
            [images, f"--reference={statistics(root / 'e.npz', mu=np.zeros(8), sigma=np.eye(8))}"],
            "holds statistics of 8 pooled features",
        ),
        "NaN statistics": ([images, f"--reference={statistics(root / 'f.npz', mu=nan)}"], "are not finite"),
        "constant statistics": (
            [images, f"--reference={statistics(root / 'g.npz', sigma=np.zeros((192, 192)))}"],
            "are of features that are all the same",
        ),
        "statistics alone": (
            [images, f"--reference={statistics(root / 'h.npz')}", "--metrics", "kid"],
            "kid cannot be measured: it needs real images, and h.npz holds statistics alone",
        ),
        "no labels": (
            [file("i.npz", arr_0=good), *against, "--metrics", "accuracy"],
            "accuracy cannot be measured: it needs the class of each of the samples, which i.npz does not have",
        ),
        "too few": (
            [file("j.npz", arr_0=good[:3]), *against, "--metrics", "recall"],
            "recall cannot be measured: it needs at least 4 samples, and j.npz has 3",
        ),
        "no such number": ([images, *against, "--metrics", "fdi"], "there is no metric 'fdi'; there are fid, sfid"),
        "no spatial features": ([images, *against, "--metrics=sfid"], "gives no spatial features"),
        "no weights": ([images, *against, "--extractor=inception", "--weights=null"], "get pt_inception-2015-12-05"),
        "no network": ([images, *against, "--extractor=clip"], "take inception, data, fashion or timm:MODEL"),
        "a file that is there": ([images, *against, f"--json={root / 'a.npz'}"], "is there already: choose another"),
        "intervals of statistics": (
            [statistics(root / "k.npz"), *against, "--bootstrap=5"],
            "intervals need the features of samples",
        ),
    }


def test_bad_sides_are_named_before_any_image_is_looked_at(images, val, tmp_path, capsys, monkeypatch):
    cases = bad_sides(tmp_path, images, val)
    monkeypatch.setattr(ClassifierFeatures, "__call__", lambda *_: pytest.fail("it has begun"))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for name, (args, message) in cases.items():
        network = () if any("extractor" in str(arg) for arg in args) else FASHION
        assert run("evaluate", *args, *network) == 2, name
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("scalear: error: ") and message in error, (name, error)
    assert run("stats", images, tmp_path / "a.npz", *FASHION) == 2
    assert "is there already" in capsys.readouterr().err
    assert run("stats", images, tmp_path / "statistics", *FASHION) == 2
    assert "must end so" in capsys.readouterr().err


def test_features_that_say_nothing_are_refused(images, tmp_path, capsys):
    for value, message in ((torch.nan, "are not finite: its weights are damaged"), (0.0, "gives the same features")):
        damaged = ImageClassifier(1, 10, 32)
        for parameter in damaged.parameters():
            parameter.data.fill_(value)
        save_classifier(tmp_path / "damaged.safetensors", damaged, {})
        network = ("--extractor=fashion", f"--weights={tmp_path / 'damaged.safetensors'}")
        assert run("evaluate", images, f"--reference={images}", *network) == 2
        assert message in capsys.readouterr().err


def test_grey_pictures_of_folders_that_say_rgb_are_compared(images, sides, tmp_path):
    for path in sides["folder"].iterdir():
        (tmp_path / "rgb").mkdir(exist_ok=True)
        Image.open(path).convert("RGB").save(tmp_path / "rgb" / path.name)
    random = ("--extractor=timm:test_vit", "--weights=random:0", "--metrics=fid", f"--json={tmp_path / 'numbers.json'}")
    assert run("evaluate", tmp_path / "rgb", f"--reference={images}", *random) == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["fid"] == pytest.approx(0, abs=1e-3)
