"""What the pages name is there: files, modules, headings."""

import re
from pathlib import Path

import pytest
from cli_fixtures import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "data/README.md"]


def headings(page: Path) -> list[str]:
    """As links name them."""
    lines = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines]


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or package, or something that stands in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        file = place.with_suffix(".py")
        if file.is_file():
            return all(re.search(rf"\b{part}\b", file.read_text()) for part in parts[count:])
        if place.is_dir():
            return count == len(parts)
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)]*)\)", page.read_text()):
        place = page.parent / target if target else page
        assert place.exists(), target
        assert not anchor or anchor in headings(place), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile"], ids=lambda page: page.name)
def test_paths_and_modules_are_there(page):
    text = page.read_text()
    paths = re.findall(r"(?<![\w/.-])((?:scalear|tests|docs)/[\w/-]+\.\w+)", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [name for name in re.findall(r"(?<![\w.])scalear(?:\.\w+)+", text) if not is_module(name)] == []
