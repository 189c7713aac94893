"""`scalear convert`: official files to ours and back, and every file that is none."""

import argparse
import json
import os
from dataclasses import replace

import pytest
import torch
import yaml
from cli_fixtures import ROOT
from parity_case import FOLDER, Case
from safetensors import safe_open
from safetensors.torch import load_file

from scalear.__main__ import main
from scalear.class_paths import settings_part
from scalear.flow import FlowSolver
from scalear.image_model import ImageModel
from scalear.interop.hub.pretrained import ScaleARModel
from scalear.interop.official.convert import convert_state, revert_state
from scalear.interop.official.family import attention_mask, node
from scalear.scales import ScaleSchedule
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.conv import ConvShape
from scalear.tokenizers.gaussian import Gaussian
from scalear.tokenizers.weights import load_tokenizer

KL16_CONFIG = ROOT / "configs/imagenet256/tokenizer-kl16.yaml"


class Touch:
    """What a pickle can do to whoever reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def flowar() -> dict[str, torch.Tensor]:
    """As a real file: with the mask that recordings leave out."""
    state = Case(FOLDER / "flowar_v1-a.safetensors").state()
    return state | {"mask": attention_mask(ScaleSchedule.parse("1,2,4,8,16"))}


@pytest.fixture(scope="module")
def kl16() -> dict[str, torch.Tensor]:
    return Case(FOLDER / "kl16-a.safetensors").state()


def convert(capsys, *args: object) -> tuple[int, str]:
    """Exit code and what was printed."""
    code = main(["convert", *map(str, args)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def saved(content: object, path) -> object:
    torch.save(content, path)
    return path


def test_there_and_back_gives_the_same_bits(flowar, tmp_path, capsys):
    source = saved(flowar, tmp_path / "official.pth")
    assert convert(capsys, source, tmp_path / "ours.safetensors")[0] == 0
    assert convert(capsys, tmp_path / "ours.safetensors", tmp_path / "back.pth", "--reverse")[0] == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == list(flowar)
    for key, tensor in flowar.items():
        assert back[key].dtype == tensor.dtype and torch.equal(back[key], tensor), key


def test_the_report_counts_and_names_the_constants(flowar, tmp_path, capsys):
    code, text = convert(capsys, saved(flowar, tmp_path / "official.pth"), tmp_path / "ours.safetensors")
    assert code == 0
    assert "flowar" in text and "452,584" in text and "mask" in text and "unused      0" in text


def test_averaged_weights_come_first_and_namespaces_are_read(flowar, tmp_path, capsys):
    raw = {key: tensor + 1 if key.endswith("bias") else tensor for key, tensor in flowar.items()}
    content = {"model": raw, "model_ema": flowar, "epoch": 1, "args": argparse.Namespace(lr=1e-4)}
    source = saved(content, tmp_path / "checkpoint.pth")
    for option, expected in (((), flowar), (("--raw",), raw)):
        output = tmp_path / f"ours{len(option)}.safetensors"
        assert convert(capsys, source, output, *option)[0] == 0
        bias = load_file(output)["transformer.context_proj.bias"]
        assert torch.equal(bias, expected["z_proj.bias"])


def test_nested_checkpoints_of_var_are_found(kl16, tmp_path, capsys):
    source = saved({"epoch": 1, "trainer": {"vae_local": kl16}}, tmp_path / "ar-ckpt.pth")
    code, text = convert(capsys, source, tmp_path / "ours.safetensors")
    assert code == 0 and "trainer/vae_local" in text


def test_converted_tokenizers_are_weights(kl16, tmp_path, capsys):
    output = tmp_path / "tokenizer.safetensors"
    assert convert(capsys, saved({"model": kl16}, tmp_path / "kl16.ckpt"), output, "--family", "kl16")[0] == 0
    shape = ConvShape(32, (1, 2), num_res_blocks=1, decoder_attention=False)
    tokenizer = ConvTokenizer(shape, Gaussian(16), image_channels=3)
    load_tokenizer(tokenizer, output)
    torch.testing.assert_close(1 / tokenizer.latent_std, torch.full((16,), 0.2325))
    with pytest.raises(ValueError, match="num_res_blocks"):
        load_tokenizer(ConvTokenizer(replace(shape, num_res_blocks=2), Gaussian(16), image_channels=3), output)


def test_statistics_that_cannot_be_derived_are_carried(tmp_path, capsys):
    case = Case(FOLDER / "var_vqvae-a.safetensors")
    source = saved(case.state(), tmp_path / "vae.pth")
    arguments = tmp_path / "arguments.yaml"
    arguments.write_text(yaml.safe_dump({"v_patch_nums": case.constructor["kwargs"]["v_patch_nums"]}))
    code, text = convert(capsys, source, tmp_path / "ours.safetensors")
    assert code == 2 and "v_patch_nums" in text and "--config" in text
    assert convert(capsys, source, tmp_path / "ours.safetensors", "--config", arguments)[0] == 0
    assert convert(capsys, tmp_path / "ours.safetensors", tmp_path / "back.pth", "--reverse")[0] == 0
    hits = "quantize.ema_vocab_hit_SV"
    assert torch.equal(torch.load(tmp_path / "back.pth", weights_only=True)[hits], case.state()[hits])


def test_numbers_of_a_config_are_numbers(tmp_path, capsys):
    case, path = Case(FOLDER / "flexvar-a.safetensors"), tmp_path / "arguments.yaml"
    source = saved(case.state("var"), tmp_path / "flexvar.pth")
    given = yaml.safe_dump({"patch_nums": case.constructor["var_kwargs"]["patch_nums"]})
    for number, expected in (("1e-6", 0), ("1e-5", 2)):
        path.write_text(f"{given}norm_eps: {number}")
        code, text = convert(capsys, source, tmp_path / f"{number}.safetensors", "--config", path)
        assert code == expected, text
    assert "norm_eps 1e-05 is not supported" in text


def test_a_config_of_ours_says_what_the_file_must_fit(kl16, tmp_path, capsys):
    bottleneck = node(Gaussian, latent_channels=16)
    shape = {"channels": 32, "channel_multipliers": [1, 2], "decoder_attention": False}
    source, path = saved(kl16, tmp_path / "kl16.pth"), tmp_path / "config.yaml"
    for num_res_blocks, expected in ((1, 0), (2, 2)):
        parts = {"shape": shape | {"num_res_blocks": num_res_blocks}, "bottleneck": bottleneck}
        tokenizer = node(ConvTokenizer, image_channels=3, **parts, weights="x.safetensors")
        content = yaml.safe_load(KL16_CONFIG.read_text())
        content["model"]["init_args"]["tokenizer"] = tokenizer
        path.write_text(yaml.safe_dump(content))
        code, text = convert(capsys, source, tmp_path / f"{num_res_blocks}.safetensors", "--config", path)
        assert code == expected, text
    assert "encoder.down.0.block.1.norm1.weight" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"encoder_num_heads": 8}, "encoder_num_heads is 4"),
        ({"scale": [1, 16]}, "scale is"),
        ({"heads": 4}, "no argument heads"),
        ({"decoder_depth": 3}, "decoder_depth is 2"),
    ],
)
def test_arguments_must_agree_with_the_file(flowar, arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_state(flowar, arguments=arguments)


def test_constants_are_checked_and_may_drift_a_little(flowar):
    key = "encoder_blocks.0.attn.rope.freqs"
    drifted = flowar | {key: flowar[key] * (1 + 1e-6)}
    conversion = convert_state(drifted)
    assert list(conversion.carried) == [key]
    assert torch.equal(revert_state(conversion)[key], drifted[key])
    with pytest.raises(ValueError, match=key):
        convert_state(flowar | {key: flowar[key] * 2})


def test_every_key_must_find_its_place(flowar):
    with pytest.raises(ValueError, match="no place for: surprise"):
        convert_state(flowar | {"surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match="decoder_norm.weight"):
        convert_state({key: tensor for key, tensor in flowar.items() if key != "decoder_norm.weight"})
    with pytest.raises(ValueError, match="lacks 'z_proj.weight'"):
        convert_state({key: tensor for key, tensor in flowar.items() if key != "z_proj.weight"})
    with pytest.raises(ValueError, match="z_proj_ln|input_norm"):
        convert_state(flowar | {"z_proj_ln.weight": torch.ones(3)})


def test_bad_files_are_refused_and_nothing_is_written(flowar, kl16, tmp_path, capsys):
    whole = saved(flowar, tmp_path / "whole.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    saved({"model": Touch(tmp_path / "pwned")}, tmp_path / "code.pth")
    saved({"weights": {"a": torch.zeros(1)}}, tmp_path / "elsewhere.pth")
    saved({"model": {"a": torch.zeros(1)}}, tmp_path / "unknown.pth")
    saved(kl16, tmp_path / "kl16.pth")
    output = tmp_path / "out" / "ours.safetensors"
    for name, message, *options in (
        ("missing.pth", "no checkpoint at"),
        ("truncated.pth", "damaged"),
        ("text.pth", "damaged"),
        ("empty.safetensors", "not a readable safetensors"),
        ("code.pth", "mkdir"),
        ("elsewhere.pth", "no state dict in a known place"),
        ("unknown.pth", "no known family"),
        ("kl16.pth", "looks like kl16", "--family", "flowar"),
        (
            "whole.pth",
            "another family|no tokenizer|describes no",
            "--config",
            "configs/imagenet256/tokenizer-kl16.yaml",
        ),
        ("whole.pth", "cannot read", "--config", tmp_path / "no.yaml"),
        ("whole.pth", "not a readable safetensors", "--reverse"),
    ):
        code, text = convert(capsys, tmp_path / name, output, *options)
        assert code == 2 and any(part in text for part in message.split("|")), text
    assert not output.parent.exists() and not (tmp_path / "pwned").exists()


def test_files_in_the_way_are_kept(kl16, tmp_path, capsys):
    source, output = saved(kl16, tmp_path / "kl16.pth"), tmp_path / "ours.safetensors"
    output.write_text("mine")
    code, text = convert(capsys, source, output)
    assert code == 2 and "--force" in text and output.read_text() == "mine"
    assert convert(capsys, source, output, "--force")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kl16.pth", "ours.safetensors"]


def test_files_say_what_they_hold(kl16, tmp_path, capsys):
    output = tmp_path / "ours.safetensors"
    convert(capsys, saved(kl16, tmp_path / "kl16.pth"), output)
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
    assert metadata["class_path"] == "scalear.tokenizers.autoencoder.ConvTokenizer" and metadata["fingerprint"]
    assert json.loads(metadata["official"])["family"] == "kl16"


def test_exported_models_leave_as_official_ones(flowar, kl16, tmp_path, capsys):
    generator, tokenizer = convert_state(flowar), convert_state(kl16)
    given = generator.config["init_args"]
    parts = {name: given[name] for name in ("transformer", "head", "label_drop_prob")}
    parts |= {"tokenizer": tokenizer.config, "pyramid": "scalear.pyramid.LatentPyramid"}
    parts |= {"sampling": settings_part(FlowSolver()), "guidance": {}}
    model = ScaleARModel(node(ImageModel, **parts))
    model.model.generator.load_state_dict(generator.tensors)
    model.model.tokenizer.load_state_dict(tokenizer.tensors)
    model.save_pretrained(tmp_path / "model")
    for family, expected in (("flowar", flowar), ("kl16", kl16)):
        output = tmp_path / f"{family}.pth"
        assert convert(capsys, tmp_path / "model", output, "--reverse", "--family", family)[0] == 0
        official = torch.load(output, weights_only=True)
        assert official.keys() == expected.keys()
        assert all(torch.equal(official[key], tensor) for key, tensor in expected.items())
    code, text = convert(capsys, tmp_path / "model", tmp_path / "x.pth", "--reverse")
    assert code == 2 and "--family" in text
    code, text = convert(capsys, tmp_path, tmp_path / "x.pth", "--reverse", "--family", "kl16")
    assert code == 2 and "scalear export" in text
