"""What the documents point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "benchmarks/README.md", "cluster/README.md", "configs/recipes/README.md"]


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading_in_it(name: str):
    document = ROOT / name
    links = [link for link in re.findall(r"\]\(([^)]+)\)", document.read_text()) if "://" not in link]
    for link in links:
        file, _, heading = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), link
        assert not heading or heading in anchors(target), link
    assert links or name != "README.md"


def test_every_result_that_is_named_is_there_and_every_one_that_is_there_is_named():
    named = re.findall(r"\bresults/([\w-]+\.\w+)", "".join((ROOT / name).read_text() for name in DOCUMENTS))
    assert set(named) == {file.name for file in (ROOT / "benchmarks/results").iterdir()}
