"""docs/study.md of results that are made up."""

import dataclasses
from math import inf

import pytest
from config_fixtures import ROOT
from PIL import Image
from study_fixtures import made_up, made_up_study

from scalear.study.cost import Cost, write_costs
from scalear.study.orders import compared
from scalear.study.page import page_of, write_page
from scalear.study.plan import Study, StudyRow
from scalear.study.results import METHOD, Identity, StudyResult, read_results, result_path


def table_of(page: str, title: str) -> dict[str, dict[str, str]]:
    """Cells of the first table under a heading, by the name of the row and the title of the column."""
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {cells[0]: dict(zip(lines[0][1:], cells[1:], strict=True)) for cells in lines[2:]}


def section_of(page: str, title: str) -> str:
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    "better, worse, verdict",
    [
        ([2.0, 2.2], [3.0, 3.2], "holds"),
        ([3.0, 3.2], [2.0, 2.2], "does not"),
        ([2.0, 3.0], [2.5, 2.6], "within the spread"),
        ([2.0], [2.01, 2.02], "one seed"),
        ([2.0], [], None),
        ([2.0, 2.2], [inf, inf], "holds"),  # fails
        ([2.0, inf], [3.0, 3.2], "does not"),
    ],
)
def test_orders_are_those_of_means_and_more_than_their_spread(better, worse, verdict):
    results = {name: dict(enumerate(map(made_up, fids))) for name, fids in (("a", better), ("b", worse))}
    assert compared(results, "a", "b") == verdict


def test_without_results_every_row_is_shown_as_not_run(tmp_path):
    page = page_of(made_up_study(tmp_path), {}, tmp_path / "study", tmp_path / "page.md")
    assert "**0 of 18 results are there**" in page and "What we think of it." in page
    assert {name: cells["FID"] for name, cells in table_of(page, "Heads").items()} == dict.fromkeys(
        ("flowar", "flowar-adaln", "flowar-both", "flowar-wide"), "not run"
    )
    assert [cells["FID (paper)"] for cells in table_of(page, "Heads").values()] == ["3.61", "14.28", "", "fails"]
    assert "The paper's order, 2 comparisons: 2 not run." in page
    assert "Losses of flowar and flexvar: not run." in page and "![" not in page
    assert "Nothing was timed" in page and "Seeds are 0, 1 in this order" in page
    assert "The paper's order" not in section_of(page, "Scales") + section_of(page, "Convergence")


def test_tables_have_means_spreads_and_verdicts(tmp_path):
    results = {
        "ablations/flowar": {0: made_up(3.0), 1: made_up(5.0)},
        "ablations/flowar-adaln": {0: made_up(9.0, line="FID-2k 9.00 (how)")},
        "ablations/flowar-both": {0: made_up(8.0), 1: made_up(inf)},
        "ablations/flowar-wide": {0: made_up(inf), 1: made_up(inf)},
    }
    (tmp_path / "study/ablations").mkdir(parents=True)
    (tmp_path / "study/ablations/flowar-adaln-0.png").touch()
    page = page_of(made_up_study(tmp_path), results, tmp_path / "study", tmp_path / "page.md")
    table = table_of(page, "Heads")
    assert table["flowar"]["FID"] == "4.00 ± 1.41" and table["flowar"]["KID"] == "0.04000 ± 0.01414"
    assert table["flowar-adaln (1 of 2 seeds)"]["FID"] == "9.00"
    assert table["flowar-adaln (1 of 2 seeds)"]["order"] == "one seed (after flowar)"
    assert (table["flowar-both"]["FID"], table["flowar-wide"]["FID"]) == ("1 of 2 fail", "fails")
    assert table["flowar-wide"]["order"] == "one seed (after flowar-adaln)"
    assert table["flowar"]["parameters"] == "1,234"
    assert "2 comparisons: 2 one seed." in section_of(page, "Heads")
    assert "flowar-adaln: FID-2k 9.00 (how)\n\n![flowar-adaln](study/ablations/flowar-adaln-0.png)" in page
    assert page.count("![") == 1  # of sheets that are there


def test_precisions_and_cautions_are_told(tmp_path):
    results = {
        "ablations/flowar": {0: made_up(3.0, precision="32-true"), 1: made_up(5.0, precision="bf16-mixed")},
        "ablations/flowar-adaln": {0: made_up(9.0, cautions=["few images"]), 1: made_up(8.0, cautions=["few images"])},
        "ablations/flowar-wide": {0: made_up(9.0, cautions=["few images", "one class"])},
    }
    page = page_of(made_up_study(tmp_path), results, tmp_path / "study", tmp_path / "page.md")
    assert table_of(page, "Heads")["flowar"]["precision"] == "32-true, bf16-mixed"
    assert "- few images (flowar-adaln, flowar-wide)\n- one class (flowar-wide)\n" in section_of(page, "Heads")


def test_no_column_of_seconds_mixes_kinds_of_machines(tmp_path):
    speed = {"seconds_per_image_1": 0.5, "seconds_per_image_100": 0.25, "tflop_per_image": 0.002}
    moved = dataclasses.replace(made_up(2.0), machines=["A", "B"])
    results = {
        "headline/flowar": {0: made_up(3.0, speed=speed), 1: made_up(5.0)},
        "headline/flexvar": {0: made_up(4.0, machine="B", speed=speed), 1: moved},
    }
    table = table_of(page_of(made_up_study(tmp_path), results, tmp_path, tmp_path / "page.md"), "All methods")
    flowar, flexvar = table["flowar"], table["flexvar"]
    assert (flowar["s to train (A)"], flowar["s to train (B)"]) == ("60 ± 0", "")
    assert (flexvar["s to train (A)"], flexvar["s to train (B)"]) == ("", "60")  # one seed moved, and counts nowhere
    assert (flowar["s/image, batch 1 (A)"], flowar["s/image, batch 1 (B)"]) == ("0.5000", "")
    assert (flexvar["s/image, batch 100 (B)"], flexvar["GFLOP/image"]) == ("0.2500", "2.000")


def test_the_page_is_written_from_files(tmp_path):
    study, folder = made_up_study(tmp_path), tmp_path / "docs/study"
    losses = [(1, 2.0), (2, 1.5)]
    for name, row in study.rows.items():
        for seed in row.seeds[:1] if "steps" not in name else []:
            made_up(3.0, loss=losses).write(result_path(folder, row, seed))
    cost = Cost(machine="A", parameters=5, seconds_per_step=2.0, seconds_per_image=0.5)
    longer = Cost(machine="B", seconds_per_image=0.75)
    write_costs(folder, {"headline/flexvar": cost, "samplings/steps-2": longer})
    write_page(study, folder, tmp_path / "docs/study.md")
    page = (tmp_path / "docs/study.md").read_text()
    assert "**10 of 18 results are there**" in page
    with Image.open(folder / "losses-flowar-flexvar.png") as picture:
        assert picture.size == (600, 400)
    assert "![losses of training](study/losses-flowar-flexvar.png)" in page
    # 2 seeds of 100 steps and 100 samples, a search of 3 trials and two judgements of 10 samples each
    assert table_of(page, "What it takes")["headline/flexvar"]["hours"] == f"{(2 * 100 * 2 + 250 * 0.5) / 3600:.2f}"
    assert table_of(page, "What it takes")["samplings/steps-2"]["hours"] == f"{50 * 0.75 / 3600:.2f}"
    assert "0.1 hours on A, 0.0 hours on B for all seeds of the 2 rows below" in page
    write_page(study, folder, tmp_path / "docs/study.md")
    assert (tmp_path / "docs/study.md").read_text() == page


def test_results_are_read_as_they_were_written(tmp_path):
    study = made_up_study(tmp_path)
    row = study.rows["headline/flowar"]
    written = made_up(3.0, speed={"tflop_per_image": 1.0}, settings={"guidance": {"weight": 2.0}}, cautions=["few"])
    path = result_path(tmp_path, row, 1)
    assert StudyResult.read(path) is None
    written.write(path)
    assert read_results(tmp_path, study)["headline/flowar"] == {1: written}
    dataclasses.replace(written, numbers={"fid": inf}).write(path)
    assert StudyResult.read(path).has_failed and not written.has_failed

    def identity(row: StudyRow, seed: int) -> Identity:
        return dataclasses.replace(written.identity, config="changed" if row.name == "headline/flowar" else "c")

    assert read_results(tmp_path, study, identity)["headline/flowar"] == {}
    dataclasses.replace(written, identity=Identity("c", "d", METHOD - 1)).write(path)
    assert read_results(tmp_path, study)["headline/flowar"] == {}
    path.write_text('{"fid": 3}')
    with pytest.raises(ValueError, match="flowar-1.json is no result of a study .*: remove it"):
        StudyResult.read(path)


def test_the_committed_page_is_that_of_the_committed_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = Study("configs/study.yaml", "docs/study/tables.yaml")
    page = page_of(study, read_results("docs/study", study), "docs/study", "docs/study.md")
    assert (ROOT / "docs/study.md").read_text() == page, "make study-report"
