"""Every YAML under configs/, as the command line reads it."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from config_fixtures import (
    CONFIGS,
    EXPERIMENTS,
    FAMILIES,
    GENERAL,
    ROOT,
    STUDY,
    VARIANTS,
    Parsed,
    arguments,
    name_of,
    on_meta,
    parsed,
)

from scalear.benchmark.solver import FAST8
from scalear.commands.data import data_parser
from scalear.flow import FlowSolver
from scalear.training.optim import split_parameters

pytestmark = pytest.mark.integration

FACTS = json.loads((ROOT / "tests/parity/facts.json").read_text())
_FLOWAR, _VAR, _FLEXVAR = (FACTS[name]["parameters"] for name in ("FlowAR", "VAR", "FlexVAR"))
# Parameters of the official models, by the name of our experiment.
OFFICIAL_PARAMETERS = {
    "imagenet256/flowar-s": _FLOWAR["flowar_small"]["total"],
    # inferred: none is official
    "imagenet256/flowar-b": FACTS["FlowAR"]["flowar_b_candidates_within_1_percent"][0]["params"],
    "imagenet256/flowar-l": _FLOWAR["flowar_large"]["total"],
    "imagenet256/flowar-h": _FLOWAR["flowar_huge"]["total"],
    **{f"imagenet256/var-{size}": _VAR[size] for size in ("d12", "d16", "d20", "d24", "d30")},
    # at 512 px; the fact is for the tokens of 256 px
    "imagenet512/var-d36": _VAR["d36_shared_aln"] + (2240 - 680) * 36 * 64,
    **{f"imagenet256/flexvar-{size}": _FLEXVAR[size] for size in ("d16", "d20", "d24")},  # d30 was never released
    "imagenet512/flexvar-d24": _FLEXVAR["d24"],
    "imagenet256/tokenizer-kl16": FACTS["mar"]["parameters"]["kl16"],
    "imagenet256/tokenizer-vq16": _FLEXVAR["vq16_8912x32"],
    "imagenet256/tokenizer-rvq16": _VAR["vqvae_ch160_V4096_C32"],
}
PAGES = [path.relative_to(ROOT) for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]]
GENERATORS = [name for name, files in EXPERIMENTS.items() if "GeneratorModule" in (ROOT / files[0]).read_text()]


def commands(path: Path) -> list[list[str]]:
    """`scalear ...` in the comments of a config, as argument lists."""
    comments = "".join(re.findall(r"^# ?(.*?\n)", (ROOT / path).read_text(), re.MULTILINE))
    comments = re.sub(r"\$\w+", "2", re.sub(r"\${.*?}", "", comments))  # variables of a shell script
    lines = re.sub(r"\\\n *", " ", comments).splitlines()
    found = [re.search(r"(?:-m |srun |^ *)scalear ((?:fit|validate|test|predict|data) -?.*)", line) for line in lines]
    # An explanation may follow a command, some spaces away.
    return [shlex.split(re.split(r"(?<=\S) {3,}", match[1])[0]) for match in found if match]


def as_fit(args: list[str]) -> list[str]:
    """The same files and options for `fit`, which reads them as `test` and `predict` do: each is read once."""
    options = [str(ROOT / arg) if arg.startswith("configs/") else arg for arg in args[1:]]  # as `arguments` names them
    if "--ckpt_path" in options:
        place = options.index("--ckpt_path")
        del options[place : place + 2]
    return ["fit", *options]


def stated_parameters(name: str) -> int | None:
    """Those that the first line of an experiment's file gives its model."""
    first = (ROOT / EXPERIMENTS[name][-1]).read_text().splitlines()[0]
    stated = re.search(r"(\d+(?:,\d{3})+) .*parameters, all trainable", first)
    return int(stated[1].replace(",", "")) if stated else None


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_parses_and_its_model_is_built_on_meta(name):
    _, model, _ = on_meta(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    stated = stated_parameters(name)
    assert stated or "imagenet256/tokenizer" in name or "fashion" in name or name == "imagenet512/flexvar-d24"
    if stated:
        assert stated == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", OFFICIAL_PARAMETERS)
def test_paper_sizes_have_the_official_parameters(name):
    _, model, _ = on_meta(name)
    part = model.model.generator if hasattr(model, "model") else model.tokenizer
    assert sum(parameter.numel() for parameter in part.parameters()) == OFFICIAL_PARAMETERS[name]


def test_every_official_size_has_a_config():
    sizes = {f"var-{size}" for size in _VAR} | {f"flexvar-{size}" for size in _FLEXVAR}
    sizes = {size for size in sizes if re.fullmatch(r".*-d\d+", size)} - {"flexvar-d30"}  # never released
    assert sizes <= {name.split("/")[1] for name in OFFICIAL_PARAMETERS}
    assert OFFICIAL_PARAMETERS.keys() <= EXPERIMENTS.keys()


# Overlays that change one part of a family, and not its size.
COMPARED = {
    "flowar": [
        *("image-pyramid", "per-token", "diffusion", "text", "dit"),
        *("adaln", "sequence", "addition", "cross-attention", "channels"),
    ],
    "flexvar": ["level", "token", "sincos", "plain-tokenizer"],
    "var": ["ground-truth"],
}
FAMILY_RUNS = {"flowar": "flowar-s", "flexvar": "flexvar-d16", "var": "var-d16"}


@pytest.mark.parametrize("size", ["fashion", "imagenet256"])
@pytest.mark.parametrize("family", COMPARED)
def test_what_the_papers_compare_has_the_same_size(family, size):
    """As the files say, which the first test compares with the models."""
    run = f"{size}/{family if size == 'fashion' else FAMILY_RUNS[family]}"
    counts = [stated_parameters(name) for name in (run, *(f"{run}-{name}" for name in COMPARED[family]))]
    assert max(counts) <= 1.05 * min(counts)


@pytest.mark.parametrize("name", ["imagenet512/var-d36", "imagenet256/flexvar-d16"])
def test_what_is_not_decayed_is_what_the_official_code_exempts(name):
    generator = on_meta(name)[1].model.generator
    plain = {id(parameter) for parameter in split_parameters([generator])[1]}
    names = {name for name, parameter in generator.named_parameters() if id(parameter) in plain}
    exempt = ("bias", "positions.", "modulation.table", "log_scale_N")
    assert names == {name for name, _ in generator.named_parameters() if any(word in name for word in exempt)}


@pytest.mark.parametrize(
    "name, overlay",
    [
        (name, overlay)
        for overlay, folder in (("debug", "fashion"), ("slurm", "imagenet256"))
        for name in GENERATORS
        if name.startswith(folder) and len(EXPERIMENTS[name]) == 1
    ],
)
def test_general_overlays_fit_the_families_that_they_are_for(name, overlay):
    Parsed(["fit", *arguments(name), "-c", f"configs/{overlay}.yaml"])


@pytest.mark.parametrize("name", ["fashion/flowar", "imagenet256/flowar-s", "imagenet256/flowar-h"])
def test_the_fast_sampler_fits_flowar(name):
    sampling = Parsed(["fit", *arguments(name), "-c", "configs/fast8.yaml"]).config.fit.model.init_args.sampling
    assert FlowSolver(**sampling.init_args.as_dict()) == FAST8


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
    assert any(str(path) in args for args in found), "no config without a command that uses it"
    for args in found:
        if args[0] == "data":
            data_parser().parse_args(args[1:])
        else:
            assert args[0] in ("fit", "validate", "test", "predict")
            parsed(*as_fit(args))


@pytest.mark.parametrize("path", [*PAGES, Path("Makefile")], ids=str)
def test_pages_name_configs_that_exist(path):
    named = re.findall(r"configs/[\w/-]+\.yaml", (ROOT / path).read_text())
    assert [name for name in named if not (ROOT / name).is_file() and "NAME" not in name] == []


@pytest.mark.parametrize("path", VARIANTS, ids=str)
def test_a_variant_is_short_and_holds_only_what_differs(path):
    lines = [line for line in (ROOT / path).read_text().splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) <= 20
    family, variant = (dict(_entries(yaml.safe_load((ROOT / file).read_text()))) for file in EXPERIMENTS[name_of(path)])
    # A null may take away what the family has no other name for: its parts.
    assert [name for name, value in variant.items() if family.get(name, ...) == value] == []


def _entries(config, name=""):
    """Leaves of a config by their dotted names; `init_args` may be left out where the class is known."""
    if not isinstance(config, dict):
        yield name, config
        return
    for key, value in config.items():
        yield from _entries(value, name if key == "init_args" else f"{name}.{key}")


def test_configs_say_only_what_is_needed():
    lines = [line for path in [*CONFIGS, STUDY] for line in (ROOT / path).read_text().splitlines()]
    assert sum(bool(line.strip()) and line.strip()[0] != "#" for line in lines) <= 1300
    assert max(map(len, lines)) <= 120


# Paths, hardware, intervals and what every file begins with: ours, as the first lines of the files say.
UNNAMED = {
    *("seed_everything", "weights", "source", "data_dir", "latents_dir", "default_root_dir", "extractor", "callbacks"),
    *("accelerator", "devices", "num_nodes", "strategy", "batch_size", "num_workers"),
    *("val_check_interval", "check_val_every_n_epoch"),
}
HOUSE = {"GeneratorModule", "TokenizerModule", "ShardDataModule", "FeatureFID", "InceptionFeatures"}
SOURCE = re.compile(r"\b(paper|code|ours|inferred|ImageNet|FlexVAR|VAR|LlamaGen|LDM|MAR|Mamba)\b")


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_line_has_a_source(path):
    """Each choice of a paper's recipe beside it; elsewhere the first lines speak for all."""
    lines = (ROOT / path).read_text().splitlines()
    if path.parts[1] != "imagenet256":
        assert [line for line in lines if re.search("^# Sources: ", line)]
        return
    architecture = 1000  # where its lines begin; it names its source itself
    for line in lines:
        content, _, comment = line.partition(" # ")
        indent = len(content) - len(content.lstrip())
        if not content.strip() or content.lstrip()[0] == "#" or indent > architecture:
            continue
        architecture = indent if content.strip() == "architecture:" else 1000
        chosen = {name.rpartition(".")[2]: value for name, value in _entries(yaml.safe_load(content.strip(" -")))}
        needed = [name for name, value in chosen.items() if name not in UNNAMED and value not in (None, "", *HOUSE)]
        assert SOURCE.search(comment) or not needed, line


def test_every_experiment_has_a_run_folder_of_its_own():
    assert len(EXPERIMENTS) == len(FAMILIES) + len(VARIANTS) == len(CONFIGS) - len(GENERAL)
