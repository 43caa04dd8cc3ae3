"""What the README says is what the programs say."""

import re
from pathlib import Path

import pytest

from benchmarks.parameters import denoiser, table

ROOT = Path(__file__).resolve().parents[2]


def between(marker: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {marker} -->\n(.*?)\n?<!-- /{marker} -->", text, re.DOTALL)
    assert found is not None
    return found[1].strip()


def test_the_parameter_table_is_the_counted_one() -> None:
    assert between("parameters") == table()


@pytest.mark.parametrize("marker", ["demo", "quality"])
def test_figures_stand_in_the_result_pages_that_are_named(marker: str) -> None:
    text = between(marker)
    pages = re.findall(r"`(benchmarks/results/[\w.-]+\.md)`", text)
    printed = [(ROOT / page).read_text(encoding="utf-8").splitlines() for page in pages]

    rows = [line for line in text.splitlines() if line.startswith("|")]

    assert len(rows) > 5
    assert set(rows) <= {line for page in printed for line in page}


def test_small_blocks_have_the_parameters_of_the_formula() -> None:
    width, layers = 128, 4

    counted = sum(p.numel() for p in denoiser("small", 8).blocks.parameters())

    per_layer = (4 + 8 + 6) * width**2 + (3 + 1 + 4 + 1 + 6) * width
    assert counted == layers * per_layer


def test_every_verb_in_the_readme_is_a_pipeline() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    verbs = set(re.findall(r"python -m pipelines\.(\w+)", text))

    assert {"validate", "train", "generate", "evaluate", "demo"} <= verbs
    assert all((ROOT / "pipelines" / f"{verb}.py").is_file() for verb in verbs)
