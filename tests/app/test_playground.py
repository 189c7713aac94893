"""What a page may ask of a model, and that it gets it and nothing else."""

import base64
import io

import numpy as np
import pytest
import torch
from model_fixtures import make_code_model, make_model, randomise
from PIL import Image
from test_editing import SIDE, make_editor

from scalear.app import playground as module
from scalear.app.playground import MAX_PICTURES, Playground
from scalear.draws import SeededDraws
from scalear.evaluation.images import to_uint8
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.image_model import ImageModel


@pytest.fixture(scope="module")
def model() -> ImageModel:
    """A tiny FlexVAR of 32x32 grey pixels and three classes."""
    return make_editor().model


@pytest.fixture
def playground(model) -> Playground:
    return Playground(model, class_names=["bag", "boot", "coat"], precision="32-true")


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def picture_file(array: np.ndarray, format: str = "PNG") -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(array).save(stream, format)
        return stream.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def digits(rows: slice, columns: slice) -> str:
    mask = np.zeros((SIDE, SIDE), int)
    mask[rows, columns] = 1
    return "".join(map(str, mask.flatten()))


def test_pictures_are_those_of_class_and_seed_after_each_scale(model, playground):
    steps = list(playground.sample({"labels": [0, 2, 3], "seeds": [5, 5, 7]}))
    label, draws = torch.tensor([0, 2, 3]), SeededDraws([(0, 5), (0, 5), (0, 7)])
    with torch.no_grad():
        scales = list(model.sample_scales(label, draws))
        for number, step in enumerate(steps, 1):
            expected = to_uint8(model.image(scales[:number]))[:, 0].numpy()
            assert np.array_equal([pixels(url) for url in step["pictures"]], expected)
    assert number == model.schedule.num_scales and step["seconds"] > 0


def test_sliders_have_the_models_own_values_and_moving_one_counts(model, playground):
    sliders = playground.sliders()
    assert sliders["model.guidance.weight"] == {"low": 1.0, "high": 8.0, "value": 2.0, "whole": False}
    assert list(sliders)[1:] == ["model.sampling.temperature", "model.sampling.top_p"]

    def last(**settings) -> list[str]:
        *_, step = playground.sample({"labels": [0], "seeds": [1]} | settings)
        return step["pictures"]

    own = {name: slider["value"] for name, slider in sliders.items()}
    assert last(settings=own) == last() != last(settings={"model.guidance.weight": 7.5})


def test_sliders_are_settings_of_the_head_that_have_an_effect():
    flow = Playground(make_model(sampling=FlowSolver("ab3", 30), guidance=Guidance(9.5)))
    assert flow.sliders() == {
        "model.guidance.weight": {"low": 1.0, "high": 9.5, "value": 9.5, "whole": False},
        "model.sampling.num_steps": {"low": 4, "high": 30, "value": 30, "whole": True},
    }
    asked = {"labels": [0], "seeds": [0], "settings": {"model.sampling.num_steps": 4.5}}
    with pytest.raises(ValueError, match="num_steps must be a whole number from 4 to 30, got 4.5"):
        next(flow.sample(asked))
    assert list(Playground(make_model(num_classes=0)).sliders()) == ["model.sampling.num_steps"]
    assert Playground(make_model(num_classes=0)).describe()["classes"] == ["no class"]


@pytest.mark.parametrize("area", [(slice(8, 20), slice(4, 30)), (slice(3, 9), slice(17, 23))])
def test_a_completion_changes_only_what_the_mask_covers(playground, area):
    given = noise(SIDE, SIDE)
    asked = {"picture": playground.fit(picture_file(given))["picture"], "mask": digits(*area), "label": 1, "seed": 3}
    one, same, other = (pixels(playground.complete(asked | {"seed": seed})["picture"]) for seed in (3, 3, 4))
    covered = np.zeros_like(given, bool)
    covered[area] = True
    assert np.array_equal(one[~covered], given[~covered]) and (one != given)[covered].mean() > 0.9
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    guided = playground.complete(asked | {"settings": {"model.guidance.weight": 8}})
    assert not np.array_equal(pixels(guided["picture"]), one)


def test_what_is_uploaded_becomes_a_picture_of_the_models_kind(playground):
    wide = noise(40, 100, 3)
    wide[:, 20:80] = (200, 100, 0)
    made = pixels(playground.fit(picture_file(wide))["picture"])
    assert made.shape == (SIDE, SIDE) and np.ptp(made) == 0  # the middle, in grey
    nothing = picture_file(np.zeros((50, 50, 4), np.uint8))
    assert (pixels(playground.fit(nothing)["picture"]) == 255).all()  # transparent, on white
    for format in ("JPEG", "WEBP", "GIF", "BMP"):
        assert pixels(playground.fit(picture_file(noise(64, 64), format))["picture"]).shape == (SIDE, SIDE)


PICTURE = "data:image/png;base64," + base64.b64encode(picture_file(noise(SIDE, SIDE))).decode()
COMPLETE = {"picture": PICTURE, "mask": digits(slice(8, 16), slice(8, 16)), "label": 0, "seed": 0}


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"labels": [], "seeds": []}, "between 1 and 36 pictures can be made at once, not 0"),
        ({"labels": [0] * (MAX_PICTURES + 1), "seeds": [0] * (MAX_PICTURES + 1)}, "36 pictures .* not 37"),
        ({"labels": [0, 1], "seeds": [0]}, "one of each per picture"),
        ({"labels": "0", "seeds": "0"}, "must be two lists"),
        ({}, "must be two lists"),
        ({"labels": [4], "seeds": [0]}, "a class must be a whole number from 0 to 3, got 4"),
        ({"labels": [True], "seeds": [0]}, "a class must be .* got True"),
        ({"labels": [0.5], "seeds": [0]}, "a class must be .* got 0.5"),
        ({"labels": [0], "seeds": [-1]}, "a seed must be a whole number from 0 to 2147483647, got -1"),
        ({"labels": [0], "seeds": ["x" * 999]}, "a seed must be .* got 'xxx.{1,40}$"),
        ({"labels": [0], "seeds": [0], "settings": [1]}, "settings must be an object"),
        ({"settings": {"model.sampling.top_k": 1}}, "there is no setting 'model.sampling.top_k'; there are model.guid"),
        ({"settings": {"model.guidance.weight": 99}}, "weight must be a number from 1 to 8, got 99"),
        ({"settings": {"model.guidance.weight": float("nan")}}, "weight must be a number from 1 to 8, got nan"),
        ({"settings": {"model.guidance.weight": True}}, "weight must be a number from 1 to 8, got True"),
        (COMPLETE | {"label": None}, "a class must be .* got None"),
        (COMPLETE | {"seed": 2**40}, "a seed must be"),
        (COMPLETE | {"picture": "/etc/passwd"}, "must be text that begins with data:image/png;base64,"),
        (COMPLETE | {"picture": "data:image/png;base64,é"}, "the picture is not in base64"),
        (COMPLETE | {"picture": "data:image/png;base64,AAAA"}, "this is no picture that can be read"),
        (COMPLETE | {"mask": "01"}, "a digit, 0 or 1, for each of the 32x32 pixels"),
        (COMPLETE | {"mask": "2" * SIDE * SIDE}, "a digit, 0 or 1, for each of the 32x32 pixels"),
        (COMPLETE | {"mask": "0" * SIDE * SIDE}, "nothing to make up: the mask is empty"),
        (COMPLETE | {"mask": "1" * SIDE * SIDE}, "nothing to keep: the mask is full"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(playground, asked, message):
    with pytest.raises(ValueError, match=message) as caught:
        playground.complete(asked) if "mask" in asked else next(playground.sample(asked))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_pictures_or_too_large_are_refused(playground, monkeypatch):
    for content in (b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        with pytest.raises(ValueError, match="no picture that can be read: take one of PNG, JPEG"):
            playground.fit(content)
    with pytest.raises(ValueError, match="the picture cannot be read"):
        playground.fit(picture_file(noise(64, 64))[:-2000])
    monkeypatch.setattr(module, "MAX_PIXELS", 63 * 64)
    with pytest.raises(ValueError, match="too large: take one of at most 4,032 pixels"):
        playground.fit(picture_file(noise(64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, which lies higher
    with pytest.raises(ValueError, match="too large"):
        playground.fit(picture_file(noise(64, 64)))


def test_names_of_other_classes_are_not_taken(model, playground):
    assert playground.describe()["classes"] == ["bag", "boot", "coat", "no class"]
    for names in (None, ["bag", "boot"]):
        assert Playground(model, class_names=names).class_names == ["class 0", "class 1", "class 2"]


def test_models_of_other_scales_do_not_complete():
    playground = Playground(randomise(make_code_model("var")).eval())
    assert not playground.describe()["completes"]
    with pytest.raises(ValueError, match="use a FlexVAR config"):
        playground.complete(COMPLETE)


def test_who_stops_looking_frees_the_model(playground):
    asked = {"labels": [0], "seeds": [0]}
    steps = playground.sample(asked)
    next(steps)
    steps.close()
    assert len(list(playground.sample(asked))) == 4
