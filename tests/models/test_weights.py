"""Generators that start from a file of weights: to fine-tune, or to sample without a checkpoint."""

import json

import pytest
import torch
from model_fixtures import make_code_model, make_model, randomise

from scalear.models.generator import Generator
from scalear.models.weights import generator_metadata, load_generator
from scalear.tensor_files import CARRIED, write_tensors


def save(generator, path):
    write_tensors(path, generator.state_dict() | {CARRIED + "mask": torch.zeros(1)}, generator_metadata(generator))
    return path


def make_generator(*args, **changes) -> Generator:
    return make_model(*args, **changes).generator


def make_code_generator(*args) -> Generator:
    return make_code_model(*args).generator


@pytest.fixture
def trained():
    return randomise(make_generator())


def test_every_weight_comes_from_the_file(trained, tmp_path):
    generator = make_generator()
    message = load_generator(generator, save(trained, tmp_path / "g.safetensors"), fine_tune=False)
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), trained.parameters(), strict=True))
    assert "re-initialised" not in message


def test_other_classes_start_afresh_and_only_to_fine_tune(trained, tmp_path):
    path, generator = save(trained, tmp_path / "g.safetensors"), make_generator(num_classes=7)
    fresh = generator.transformer.class_embedding.weight.clone()
    with pytest.raises(ValueError, match="3 classes in the file, 7 in the config"):
        load_generator(generator, path, fine_tune=False)
    message = load_generator(generator, path, fine_tune=True)
    assert "class_embedding.weight is re-initialised: 3 classes in the file, 7 in the config" in message
    assert torch.equal(generator.transformer.class_embedding.weight, fresh)
    assert torch.equal(generator.transformer.context_proj.weight, trained.transformer.context_proj.weight)


def test_other_scales_start_afresh_even_with_as_many_tokens(trained, tmp_path):
    path = save(trained, tmp_path / "g.safetensors")
    message = load_generator(make_generator("1,1x4,4"), path, fine_tune=True)
    assert message.count("re-initialised: scales 1,2,4 in the file, 1,1x4,4 in the config") == 3


def test_scalable_positions_serve_any_scales(tmp_path):
    trained = randomise(make_code_generator("flexvar"))
    path, generator = save(trained, tmp_path / "g.safetensors"), make_code_generator("flexvar", "1,3,4")
    assert "re-initialised" not in load_generator(generator, path, fine_tune=False)
    names = ("table_LD", "level_embedding.weight")
    trained = randomise(make_code_generator("var"))
    generator = make_code_generator("var", "1,4")
    message = load_generator(generator, save(trained, tmp_path / "v.safetensors"), fine_tune=True)
    assert message.count("re-initialised") == 2 and all(name in message for name in names)
    assert torch.equal(generator.transformer.positions[0].start, trained.transformer.positions[0].start)


def test_other_architectures_are_refused(trained, tmp_path):
    path = save(trained, tmp_path / "g.safetensors")
    with pytest.raises(ValueError, match="another architecture.*head.network.blocks"):
        load_generator(make_generator(cross_attention=True), path, fine_tune=True)
    with pytest.raises(ValueError, match=r"head.network.input_proj.weight \(file \(32, 4\), model \(32, 8\)\)"):
        load_generator(make_generator(channels=8), path, fine_tune=True)
    with pytest.raises(ValueError, match="no weights at"):
        load_generator(make_generator(), tmp_path / "none.safetensors", fine_tune=True)
    write_tensors(path, trained.state_dict(), generator_metadata(trained) | {"num_heads": json.dumps([3])})
    with pytest.raises(ValueError, match=r"num_heads \[3\], the config has \[2, "):
        load_generator(make_generator(), path, fine_tune=True)
    write_tensors(path, trained.state_dict(), {})
    with pytest.raises(ValueError, match="scalear convert"):
        load_generator(make_generator(), path, fine_tune=True)
