"""What `scalear try` decides about a folder of pictures and a length of time."""

import math

import pytest
from cli_fixtures import ROOT

from scalear.commands.staged import recipe
from scalear.commands.staged.recipe import Facts
from scalear.yaml_files import read_yaml

FAMILIES = list(recipe.TOKENIZERS)


def base(name: str) -> dict:
    return read_yaml(ROOT / f"configs/fashion/{name}.yaml")


def facts(num_train: int = 10_000, channels: int = 3, size: int = 64) -> Facts:
    return Facts(num_train, channels, size, flip=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "most"), [(16, 4), (32, 8), (40, 10), (64, 8), (96, 12), (128, 16)])
def test_a_picture_is_few_tokens(family, size, most):
    recipe.check_request(1000, 10, size, 20, family)
    side, rest = divmod(size, recipe.token_width(size, family))
    assert rest == 0 and 4 <= side <= (8 if family == "flowar" else most)
    assert recipe.token_width(size, family) % recipe.stride(size, family) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_pictures": 12}, "12 pictures are too few to learn from: give at least 50"),
        ({"num_pictures": 4000, "num_classes": 2000}, "too few of each .*--labelled false"),
        ({"image_size": 60}, "image_size is 60, but a token of flowar is 8 pixels wide there: take 56 or 64"),
        ({"image_size": 88}, "a token of flowar is 16 pixels wide there: take 80 or 96"),
        ({"image_size": 8}, "image_size is 8, must be from 16 to 128"),
        ({"image_size": 256}, "imagenet256"),
        ({"minutes": 0.5}, "minutes is 0.5, .* a number from 4"),
        ({"minutes": math.nan}, "minutes is nan"),
    ],
)
def test_what_cannot_come_to_anything_is_refused(wrong, message):
    request = {"num_pictures": 1000, "num_classes": 10, "image_size": 64, "minutes": 20.0, "family": "flowar"}
    recipe.check_request(**request)
    with pytest.raises(ValueError, match=message):
        recipe.check_request(**request | wrong)


def test_the_shares_are_those_of_a_whole_and_what_is_saved_goes_to_the_rest():
    assert sum(recipe.SHARES.values()) == pytest.approx(1)
    left = 1000.0
    for stage in recipe.SHARES:
        spent = left * recipe.SHARES[stage] / sum(list(recipe.SHARES.values())[list(recipe.SHARES).index(stage) :])
        assert spent == pytest.approx(1000 * recipe.SHARES[stage])  # as long as each keeps to it
        assert recipe.training_seconds(stage, left) < spent
        left -= spent
    early, late = (recipe.training_seconds("generator", left) for left in (500.0, 400.0))
    assert early / late == pytest.approx(500 / 400)


@pytest.mark.parametrize(
    ("found", "num_classes"),
    [(100, 0), (100, 1), (100, 9), (2_000, 0), (2_000, 9), (10**6, 0), (10**6, 9), (10**6, 2000), (60_000, 5000)],
)
def test_any_number_of_pictures_is_packed_in_time_and_some_are_held_out(found, num_classes):
    count = min(found, recipe.max_images(1200, 0.002, num_classes))
    of_classes = num_classes * recipe.FEWEST_OF_CLASS
    assert of_classes <= count <= max(24_000, of_classes)
    held_out = recipe.val_fraction(count, num_classes) * count
    assert held_out >= 0.99 * num_classes and held_out <= max(2001, num_classes + 1)
    assert recipe.max_images(1200, 0.5, 9) * 0.5 <= 0.07 * 1200  # large pictures


def test_batches_fit_small_datasets_and_the_rate_goes_with_them():
    assert [recipe.batch_size(64, count) for count in (20, 85, 300, 510, 512, 10**6)] == [8, 8, 32, 32, 64, 64]
    assert recipe.batch_size(16, 85) == 8 and recipe.batch_size(250, 1700) == 128
    config = base("flowar")
    same, small = (recipe.with_batch(config, facts(count, size=32), "flowar") for count in (10_000, 85))
    assert same == {"data.init_args.batch_size": 64, "data.init_args.flip": True}
    assert small["model.init_args.optimizer.lr"] == pytest.approx(2e-3 * math.sqrt(8 / 64), rel=0.01)


@pytest.mark.parametrize(
    ("family", "size", "tokenizer", "generator"),
    [("flowar", 32, 64, 64), ("flowar", 64, 16, 16), ("flowar", 128, 8, 16), ("var", 32, 16, 16), ("var", 64, 16, 16)],
)
def test_a_step_has_as_many_cells_whatever_the_size(family, size, tokenizer, generator):
    for name, wanted in ((recipe.TOKENIZERS[family], tokenizer), (family, generator), ("classifier", 250)):
        overlay = recipe.with_batch(base(name), facts(size=size), family)
        assert overlay == {"data.init_args.batch_size": wanted, "data.init_args.flip": True}


def test_steps_follow_from_time_and_from_what_there_is_to_learn():
    many = recipe.num_steps("generator", 600, 0.25, 64, 10_000)
    assert many == int(recipe.training_seconds("generator", 600) / 0.25)
    assert recipe.num_steps("generator", 600, 0.25, 8, 85) <= 200 * 85 / 8
    with pytest.raises(ValueError, match="takes 60.0 s here, of which 7 fit .*--minutes"):
        recipe.num_steps("generator", 600, 60.0, 64, 10_000)


def test_samples_are_500_to_2000_and_no_more_than_make_a_floor():
    assert recipe.num_samples(600, 0.01, 10_000) == 2000
    assert recipe.num_samples(600, 0.1, 10_000) == 600
    assert recipe.num_samples(600, 10.0, 10_000) == 500
    assert recipe.num_samples(600, 0.01, 1650) == 1600 and recipe.num_samples(600, 0.01, 85) == 500


@pytest.mark.parametrize("name", ["kl", "vq", "rvq", "flowar", "flexvar", "var", "classifier"])
def test_a_length_shifts_all_that_counts_steps(name):
    config = base(name)
    made = recipe.laid_over(config, recipe.with_length(config, 600))
    assert made["trainer"]["max_steps"] == 600 and made["trainer"]["val_check_interval"] == 300
    warmup = made["model"]["init_args"]["optimizer"].get("warmup_steps")
    assert warmup is None or 0 < warmup <= 50
    settings = {
        callback["class_path"]: callback["init_args"]
        for callback in made["trainer"].get("callbacks", [])
        if isinstance(callback, dict)
    }
    if "EMA" in settings:
        assert settings["EMA"]["decay"] == pytest.approx(1 - 4 / 600, abs=1e-5)
        assert settings["SampleGrid"]["every_n_steps"] == 300
    again = base(name)
    assert config == again  # the base stays


def test_an_overlay_goes_where_the_base_has_a_place():
    assert recipe.laid_over({"a": {"b": 1}}, {"a.b": 2, "a.c": 3}) == {"a": {"b": 2, "c": 3}}
    with pytest.raises(KeyError):
        recipe.laid_over({"a": {"b": 1}}, {"c.d": 2})


def test_tokens_of_several_cells_and_a_smaller_model_of_many_tokens():
    coarse = {"model.init_args.pyramid": {"class_path": "LatentPyramid", "init_args": {"patch_size": 2}}}
    few, many, few_coarse, many_coarse = (
        recipe.token_settings(facts(size=size), "flowar") for size in (32, 64, 96, 128)
    )
    assert (few, few_coarse, many_coarse) == ({}, coarse, coarse | many)
    model = recipe.laid_over(base("flowar"), many)["model"]["init_args"]
    widths = [model["transformer"]["dim"], model["head"]["init_args"]["network"]["init_args"]["dim"]]
    assert widths == [128, 192] and model["guidance"] == {"weight": 3.0}
    assert recipe.token_settings(facts(size=128), "flexvar") == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_and_generator_have_one_tokenizer(family):
    shape = recipe.tokenizer_shape(facts(), family)
    parts = [
        recipe.laid_over(base(name), shape)["model"]["init_args"]["tokenizer"]["init_args"]
        for name in (recipe.TOKENIZERS[family], family)
    ]
    assert parts[1].pop("weights") and parts[0] == parts[1] and parts[0]["shape"]["patch_size"] == 8
    assert "latent_channels" not in str(recipe.tokenizer_shape(facts(channels=1), family))


def test_latents_of_colours_have_more_noise():
    made = recipe.laid_over(base("kl"), recipe.tokenizer_loss(facts(), "flowar"))["model"]["init_args"]["loss"]
    assert made["penalty_weights"] == {"kl": 0.05}
    assert recipe.tokenizer_loss(facts(channels=1), "flowar") == recipe.tokenizer_loss(facts(), "var") == {}
