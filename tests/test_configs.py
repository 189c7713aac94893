"""Every YAML under configs/, as the command line reads it."""

import functools
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from scalear.cli import ScalearCLI, data_parser
from scalear.training.optim import split_parameters

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml"))
OVERLAYS = [path for path in CONFIGS if path.parent == Path("configs")]
EXPERIMENTS = [path for path in CONFIGS if path not in OVERLAYS]
# The official code's numbers; FlowAR-B has no official config, the paper says 300M.
FLOWAR_PARAMETERS = {
    "flowar-s": 171_718_072,
    "flowar-b": 299_270_584,
    "flowar-l": 586_862_912,
    "flowar-h": 1_913_316_880,
}
# Those of VAR and FlexVAR are the official code's, too, when it is built for these scales.
CODE_PARAMETERS = {
    "imagenet256/var-d12": 133_186_960,
    "imagenet256/var-d16": 310_283_520,
    "imagenet256/var-d20": 600_917_136,
    "imagenet256/var-d24": 1_033_399_360,
    "imagenet256/var-d30": 2_010_020_356,
    "imagenet512/var-d36": 2_350_299_664 + 1560 * 2304,  # 2,240 positions instead of 680
    "imagenet256/flexvar-d16": 315_561_936,
    "imagenet256/flexvar-d20": 607_513_952,
    "imagenet256/flexvar-d24": 1_041_314_576,
}


class Parsed(ScalearCLI):
    """The command line, read and checked but not carried out."""

    def instantiate_classes(self) -> None: ...

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@functools.cache
def model_on_meta(path: str) -> torch.nn.Module:
    cli = Parsed(["fit", "-c", path])
    with torch.device("meta"):
        return cli.parser.instantiate_classes(cli.config)["fit"].model


def commands(path: Path) -> list[list[str]]:
    """`scalear ...` in the comments of a file, as argument lists."""
    comments = "\n".join(re.findall(r"^# ?(.*)$", (ROOT / path).read_text(), re.MULTILINE))
    lines = re.sub(r"\\\n *", " ", comments).splitlines()
    found = [re.search(r"(?:-m |srun |^ *)scalear ((?:fit|validate|test|predict|data) -?.*)", line) for line in lines]
    # An explanation may follow a command, some spaces away.
    return [shlex.split(re.split(r"(?<=\S) {3,}", match[1])[0]) for match in found if match]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SLURM_NNODES", "2")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_every_experiment_parses_and_its_model_is_built_on_meta(path):
    model = model_on_meta(str(path))
    assert all(parameter.is_meta for parameter in model.parameters())
    stated = re.search(r"(\d+(?:,\d{3})+) .*parameters, all trainable", (ROOT / path).read_text().splitlines()[0])
    if stated:
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trainable == int(stated[1].replace(",", ""))


@pytest.mark.parametrize("size", FLOWAR_PARAMETERS)
def test_flowar_has_the_papers_parameters(size):
    model = model_on_meta(f"configs/imagenet256/{size}.yaml")
    assert sum(parameter.numel() for parameter in model.generator.parameters()) == FLOWAR_PARAMETERS[size]


@pytest.mark.parametrize("name", CODE_PARAMETERS)
def test_generators_of_codes_have_the_papers_parameters(name):
    model = model_on_meta(f"configs/{name}.yaml")
    assert sum(parameter.numel() for parameter in model.generator.parameters()) == CODE_PARAMETERS[name]


@pytest.mark.parametrize("name", ["imagenet512/var-d36", "imagenet256/flexvar-d16"])
def test_what_is_not_decayed_is_what_the_official_code_exempts(name):
    generator = model_on_meta(f"configs/{name}.yaml").generator
    plain = {id(parameter) for parameter in split_parameters([generator])[1]}
    names = {name for name, parameter in generator.named_parameters() if id(parameter) in plain}
    exempt = ("bias", "class_embedding", "positions.", "modulation.table", "log_scale_N")
    assert names == {name for name, _ in generator.named_parameters() if any(word in name for word in exempt)}


@pytest.mark.parametrize(
    "overlay, path",
    [
        (overlay, path)
        for overlay, folder in (("debug", "fashion"), ("slurm", "imagenet256"))
        for path in EXPERIMENTS
        if path.parent.name == folder and "generator_module" in (ROOT / path).read_text()
    ],
    ids=str,
)
def test_overlays_fit_every_generator_that_they_are_for(path, overlay):
    Parsed(["fit", "-c", str(path), "-c", f"configs/{overlay}.yaml"])


def test_null_can_be_typed_at_any_depth():
    names = ("data.cache_dir", "model.tokenizer.weights", "model.samples.label_file", "model.report")
    typed = [f"--{name}=null" for name in names] + ["--model.seed=3"]
    config = Parsed(["fit", "-c", "configs/fashion/flowar.yaml", *typed]).config.fit
    model = config.model.init_args
    assert model.tokenizer.init_args.weights is None and model.samples.label_file is None and model.report is None
    assert config.data.init_args.cache_dir is None and model.seed == 3
    source = ["--source", "ImageFolder", "--source.root=x", "--source.val_root", "null"]
    packed = data_parser().parse_args(["pack", *source, "--output_dir=y", "--image_size=8"])
    assert packed.pack.source.init_args.val_root is None


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_commands_in_comments_can_be_typed(path):
    found = commands(path)
    assert found, "no config without the command that uses it"
    for args in found:
        args = [arg.replace("$SLURM_NNODES", "2") for arg in args]
        if args[0] == "data":
            data_parser().parse_args(args[1:])
        else:
            Parsed(args)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_the_schedule_ends_when_training_does(path):
    config = yaml.safe_load((ROOT / path).read_text())
    optimizer = config["model"]["init_args"].get("optimizer")
    if optimizer and config.get("trainer", {}).get("max_steps"):
        optimizer = optimizer.get("init_args", optimizer)
        if optimizer.get("schedule") in ("cosine", "linear"):
            assert optimizer["total_steps"] == config["trainer"]["max_steps"]


def test_every_experiment_has_a_run_folder_of_its_own():
    folders = [yaml.safe_load((ROOT / path).read_text())["trainer"]["default_root_dir"] for path in EXPERIMENTS]
    assert len(set(folders)) == len(folders)
