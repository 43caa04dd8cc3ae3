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


@pytest.mark.parametrize("marker", ["demo", "quality", "sweep"])
def test_figures_stand_in_the_result_pages_that_are_named(marker: str) -> None:
    text = between(marker)
    pages = re.findall(r"`(benchmarks/results/[\w.-]+\.md)`", text)
    printed = [(ROOT / page).read_text(encoding="utf-8").splitlines() for page in pages]

    rows = [line for line in text.splitlines() if line.startswith("|")]

    assert len(rows) > 5
    assert set(rows) <= {line for page in printed for line in page}


PAGE = "benchmarks/results/2026-11-23-quality-{}.md"
CLAIMS = {
    ("kang", "counterfactual | additive"): ["{3} above additive"],
    ("kang", "counterfactual | ridge"): ["{3} above ridge"],
    ("k562", "additive"): ["(Pearson {1},"],
    ("k562", "counterfactual"): ["ours {1})"],
    ("papalexi", "counterfactual | additive"): ["the shift is {3} better than additive's"],
    ("papalexi-unseen", "counterfactual"): ["(Pearson {1};", "energy distance {3},"],
    ("papalexi-unseen", "ridge"): ["ridge {1},"],
    ("papalexi-unseen", "mean of others"): ["the mean of other knock-outs {1};"],
    ("ablations", "labels only | counterfactual"): ["is {2}, not"],
    ("ablations", "full | counterfactual"): ["not {2}."],
    ("glioblastoma", "counterfactual"): ["(energy distance {3};"],
    ("glioblastoma", "no change"): ["no change {3};"],
    ("glioblastoma", "no shrinkage | counterfactual"): ["without shrinking by reliability {3})"],
    ("glioblastoma", "population"): ["population mode does ({3})"],
}
"""By page and the start of the first row that has it: what the README says, {column} filled in."""


@pytest.mark.parametrize(("page", "row"), CLAIMS)
def test_a_figure_in_a_sentence_is_that_of_the_page(page: str, row: str) -> None:
    said = " ".join(between("quality").split())
    lines = (ROOT / PAGE.format(page)).read_text(encoding="utf-8").splitlines()
    cells = next(line for line in lines if line.startswith(f"| {row} |")).strip("| ").split(" | ")
    shown = [cell if " | " in row else cell.split(" [")[0] for cell in cells]
    shown = [re.sub(r"\+?\b0\.", ".", cell.removeprefix("met: ")) for cell in shown]

    for claim in CLAIMS[page, row]:
        assert claim.format(*shown) in said


def test_what_is_said_of_the_sweep_s_best_stands_in_its_table() -> None:
    page = (ROOT / "benchmarks/results/2026-11-24-sweep-kang.md").read_text(encoding="utf-8")
    cells = [row.split("|") for row in page.splitlines() if row.startswith("|")]
    pearson = {row[1].strip(): row[2].strip() for row in cells}

    said = " ".join(between("sweep").split())

    best, additive = pearson["counterfactual"][1:], pearson["additive"][1:]
    assert f"a Pearson of {best} on the held-out type (additive {additive})" in said


def test_the_pictures_of_the_readme_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)

    assert len(pictures) == 3
    assert all((ROOT / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_small_blocks_have_the_parameters_of_the_formula() -> None:
    width, layers = 128, 4

    counted = sum(p.numel() for p in denoiser("small", 8).blocks.parameters())

    per_layer = (4 + 8 + 6) * width**2 + (3 + 1 + 4 + 1 + 6) * width
    assert counted == layers * per_layer


def test_every_verb_in_the_readme_is_a_pipeline() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    verbs = set(re.findall(r"python -m pipelines\.(\w+)", text))

    assert {"validate", "train", "tune", "generate", "evaluate", "register", "demo"} <= verbs
    folder = ROOT / "pipelines"
    assert all(
        (folder / f"{v}.py").is_file() or (folder / v / "__main__.py").is_file() for v in verbs
    )
