import re

import pytest
import torch
from config_fixtures import ROOT, parsed
from study_fixtures import made_up_study

from scalear.commands.studying.configs import typed
from scalear.study.cost import read_costs
from scalear.study.plan import GeneratorRow, SamplingRow, Study, settings_of_tokenizer


@pytest.fixture
def committed(monkeypatch) -> Study:
    """The study of this repository."""
    monkeypatch.chdir(ROOT)
    return Study("configs/study.yaml", "docs/study/tables.yaml")


def test_rows_are_what_tables_name_and_what_that_needs_in_order(tmp_path):
    study = made_up_study(tmp_path)
    names = list(study.rows)
    assert set(names) == {
        *("tokenizers/kl", "tokenizers/vq", "tokenizers/wide", "headline/flowar", "headline/flexvar"),
        *(f"ablations/{name}" for name in ("flowar", "flowar-adaln", "flowar-both", "flowar-wide")),
        *("samplings/steps-2", "samplings/steps-3", "samplings/scales"),
    }
    for row in study.rows.values():
        assert all(names.index(needed.name) < names.index(row.name) for needed in row.needs)
    assert study.rows["ablations/flowar"].seeds == (0, 1) and study.rows["samplings/steps-2"].seeds == (0,)
    assert [row.name for row in study.named("samplings")] == [
        f"samplings/{n}" for n in ("steps-3", "steps-2", "scales")
    ]


def test_names_say_which_files_a_row_has(tmp_path):
    rows = made_up_study(tmp_path).rows

    def files(name: str) -> list[str]:
        return [file.removeprefix(f"{tmp_path}/configs/") for file in rows[name].files]

    assert files("ablations/flowar-adaln") == ["flowar.yaml", "flowar/adaln.yaml"]
    assert files("ablations/flowar-both") == ["flowar.yaml", "flowar/adaln.yaml", "flowar/dit.yaml"]
    assert files("ablations/flowar-wide") == ["flowar.yaml"] and files("tokenizers/wide") == ["kl.yaml"]
    wide = rows["ablations/flowar-wide"]
    assert settings_of_tokenizer(wide.tokenizer) == {"model.tokenizer.shape.channels": 99}
    # Equal images, whatever the batch.
    assert wide.steps == 100 and rows["ablations/flowar"].steps == 50 and rows["headline/flowar"].steps == 100
    assert rows["ablations/flowar"].reads_latents and not rows["ablations/flowar-both"].reads_latents


@pytest.mark.parametrize(
    "group, name, message",
    [
        ("ablations", "flowar-narrow", "row ablations/flowar-narrow: .*flowar/narrow.yaml does not exist"),
        ("ablations", "gan", "ablations/gan is of no group or family"),
        ("elsewhere", "flowar", "elsewhere/flowar is of no group or family"),
        ("samplings", "steps-9", "has no sampling steps-9"),
        ("tokenizers", "narrow", "has no tokenizer narrow"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, group, name, message):
    study = made_up_study(tmp_path, {"A table": {"group": group, "rows": {name: None}}})
    with pytest.raises(ValueError, match=message):
        _ = study.rows


@pytest.mark.parametrize(
    "config, message",
    [
        ({"data": None, "groups": None}, "study.yaml does not describe a study: 'NoneType' object has no attribute"),
        ({"groups": {"tokenizers": {"images": 320}}}, "study.yaml does not describe a study: it has no 'seeds'"),
        ({"groups": {"tokenizers": {"seeds": [0], "image": 3}}}, "got an unexpected keyword argument 'image'"),
        ({"tokenizers": {"kl": None, "vq": None}}, "study.yaml does not describe a study: 'NoneType' object"),
        ({"rows": {"headline/flowar": "none"}}, "study.yaml does not describe a study: 'str' object"),
    ],
)
def test_what_is_mistyped_in_a_config_is_told_as_such(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        _ = made_up_study(tmp_path, **config).rows


def test_what_holds_no_costs_is_named(tmp_path):
    assert read_costs(tmp_path) == {}
    for content in ("{", "[]", '{"headline/flowar": {"machine": "A", "hours": 3}}'):
        (tmp_path / "cost.json").write_text(content)
        with pytest.raises(ValueError, match=r"cost.json holds no costs of a study \("):
            read_costs(tmp_path)


def test_the_papers_order_is_that_of_their_numbers_unless_a_table_says_otherwise(tmp_path, committed):
    heads = made_up_study(tmp_path).tables[1]
    assert heads.orders == [["ablations/flowar", "ablations/flowar-adaln", "ablations/flowar-wide"]]
    for table in committed.tables:
        for order in table.orders:
            fids = [table.rows[name][0] for name in order if table.rows[name]]
            assert fids == sorted(fids), table.title


def test_every_table_that_the_study_is_for_is_there(committed):
    titles = " ".join(table.title for table in committed.tables)
    flowar, flexvar = (
        re.findall(rf"{paper}, (?:table|figures?) ([\d and]+)", titles) for paper in ("FlowAR", "FlexVAR")
    )
    assert flowar == ["2", "3", "4", "5", "6"]
    assert flexvar == ["4", "5", "6", "7 and ", "11 and 15", "3", "4"]
    measured = [row for row in committed.rows.values() if isinstance(row, SamplingRow) and row.samples]
    assert [len(row.scales.split(",")) for row in measured] == [12, 10, 8, 7, 6, 5, 4]


def test_what_a_table_compares_has_the_same_size(committed):
    """But for Mamba, which is larger in its paper, too."""
    costs = read_costs("docs/study")
    for table in committed.tables:
        rows = [committed.rows[name] for name in table.rows if "mamba" not in name]
        sizes = {row.name: costs[row.name].parameters for row in rows if isinstance(row, GeneratorRow)}
        assert not sizes or max(sizes.values()) <= 1.05 * min(sizes.values()), sizes


def test_lists_of_scales_are_among_those_of_training(committed):
    """Up to 8 sides, as there are; longer lists repeat heights, as the paper has longer ones than it trains on."""
    row = committed.rows["samplings/steps-8"]
    assert row.of.settings["model.schedules.max_between"] == len(row.scales.split(",")) - 2


# Those that are no experiment of configs/fashion as it stands, whose sizes other tests compare.
@pytest.mark.parametrize(
    "name",
    [
        *("headline/flexvar", "headline/var", "ablations/flowar-8x8", "ablations/flowar-8x8-1-4-8"),
        *("ablations/flowar-per-token-diffusion", "ablations/var-7", "ablations/var-4-of-7"),
        "ablations/flexvar-learned-sincos",
    ],
)
def test_sizes_are_those_that_were_timed(committed, name):
    row = committed.rows[name]
    files = [arg for file in row.files for arg in ("-c", file)]
    cli = parsed("fit", *files, *typed(row.settings | settings_of_tokenizer(row.tokenizer)))
    with torch.device("meta"):
        generator = cli.parser.instantiate_classes(cli.config)["fit"].model.model.generator
    assert sum(part.numel() for part in generator.parameters()) == read_costs("docs/study")[name].parameters
