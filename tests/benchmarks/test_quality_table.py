"""The page of a study says what it compares, over what, and how it was made."""

from dataclasses import replace

import pandas as pd
import pytest

from benchmarks.quality_results import Results
from benchmarks.quality_study import Published, Study, source_digest
from benchmarks.quality_table import to_markdown
from benchmarks.quality_targets import TARGETS
from tests.benchmarks.tables import of_mode, results, told_apart

NAN = float("nan")
METHODS = (
    "counterfactual", "population", "additive", "ridge", "token_tilt", "mean_of_others",
    "no_change", "split_half_ceiling",
)  # fmt: skip


def page(found: Results, **changes) -> list[str]:
    content = {"name": "tiny", "question": "?", "folds": "cell_types", "config": {}}
    study = Study(**content | {"variants": {"full": {}}} | changes)
    return to_markdown(study, found, command="do").splitlines()


def rows_below(lines: list[str], start: str) -> list[list[str]]:
    """Cells of the first table behind the line that starts so, its head first."""
    place = next(i for i, line in enumerate(lines) if line.startswith(start))
    first = next(i for i, line in enumerate(lines) if i > place and line.startswith("|"))
    last = next(i for i in range(first, len(lines) + 1) if not "".join(lines[i : i + 1]))
    table = [line.strip("| ").split(" | ") for line in lines[first:last]]
    return [table[0], *table[2:]]


def test_the_page_says_what_was_met_and_what_was_missed():
    found = results(
        counterfactual=of_mode("common_degs", A=0.61),
        population=of_mode("common_degs", A=0.59),
        no_change=of_mode("common_degs", A=0),
    )

    lines = page(found, targets=("common_degs",))

    assert "| common DEGs of the top 100 ≥ .60 | met: 0.610 | MISSED: 0.590 |" in lines
    assert "## Targets" not in page(found)


def test_the_head_says_what_it_cost_and_what_made_the_scores():
    found = results(counterfactual=of_mode("pearson", A=1.0))
    twice = replace(found, facts=pd.concat([found.facts, found.facts.assign(trained_model="n")]))

    one, two = ("".join(page(these)) for these in (found, twice))

    assert "1 training, 2 CPU minutes in all" in one
    assert "2 trainings, 4 CPU minutes in all" in two
    sources = f"sources of the prediction {source_digest()[:12]}, of the scores 555555555555"
    assert f"Commit abc; {sources}; here." in one


def test_methods_that_could_not_be_scored_are_named_with_what_they_need():
    several = results(
        counterfactual=of_mode("pearson", A=1.0), additive=of_mode("pearson", A=1.0),
        ridge=of_mode("pearson", A=1.0), mean_of_others=of_mode("pearson", A=1.0),
        split_half_ceiling=of_mode("pearson", A=1.0),
    )  # fmt: skip

    (line,) = (line for line in page(several) if line.startswith("Left out"))

    assert line == "Left out: token tilt (needs another type that shows the perturbation)."


def test_a_caution_stands_right_under_the_head():
    found = results(counterfactual=of_mode("pearson", A=1.0))

    lines = page(found, caution="Chosen on these folds.")

    place = lines.index("**Not independent:** Chosen on these folds.")
    assert lines[place - 2].startswith("`do`. Data ")
    assert "Not independent" not in "".join(page(found))


def test_a_page_without_any_baseline_can_be_written():
    rows = of_mode("pearson", A=0.9, B=0.8)

    lines = page(results(counterfactual=rows, population=rows), targets=tuple(TARGETS))

    verdicts = {target: first for target, first, _ in rows_below(lines, "## Targets")[1:]}
    assert len(verdicts) == len(TARGETS)
    assert verdicts["energy distance below additive everywhere"] == "MISSED: no scores of additive"


def test_a_page_can_be_written_before_the_first_variant_is_scored():
    rows = of_mode("pearson", A=0.9, B=0.8)
    found = results([told_apart("counterfactual")], counterfactual=rows)

    lines = page(found, variants={"first": {}, "full": {}}, targets=tuple(TARGETS))

    verdicts = rows_below(lines, "## Targets")[1:]
    assert {first for _, first, _ in verdicts if first.startswith("met")} == set()
    assert rows_below(lines, "## Variants")[1][:3] == ["full", "counterfactual", "0.850"]


def test_published_figures_stand_beneath_ours_under_their_source():
    found = results(
        counterfactual=of_mode("pearson", A=0.9, B=0.8),
        population=of_mode("pearson", A=0.7),
        additive=of_mode("pearson", A=0.6),
        no_change=of_mode("pearson", A=0.0),
    )
    published = Published(source="A paper.", metrics=("pearson",), methods={"scGen": (0.87,)})

    lines = page(found, published=published)

    start = lines.index("## Published figures")
    assert lines[start + 2] == "A paper."
    rows = rows_below(lines, "## Published figures")[1:]
    assert [(row[0], row[1].split()[0]) for row in rows] == [
        ("counterfactual (ours)", "0.850"), ("population (ours)", "0.700"),
        ("additive (ours)", "0.600"), ("no change (ours)", "0.000"), ("scGen", "0.870"),
    ]  # fmt: skip


def test_the_model_is_held_against_every_baseline_and_not_the_ceiling():
    level = dict(zip(METHODS, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0, 0.99), strict=True))
    found = results(**{name: of_mode("pearson", A=value) for name, value in level.items()})

    rows = rows_below(page(found), "Paired differences")

    assert rows[0] == [
        "model", "baseline", "conditions", "Pearson of shift", "energy distance",
        "common DEGs (100)",
    ]  # fmt: skip
    assert rows[1:] == [
        [mode, name.replace("_", " "), "1", f"{level[mode] - level[name]:+.3f}", "+0.000", "+0.000"]
        for mode in METHODS[:2]
        for name in METHODS[2:-1]
    ]


def test_a_difference_is_over_the_conditions_that_both_have_and_says_how_many():
    found = results(
        counterfactual=of_mode("pearson", A=0.9, B=0.5),
        population=of_mode("pearson", A=0.9),
        additive=of_mode("pearson", A=0.8),
        no_change=of_mode("pearson", A=0.0, B=0.0),
    )

    rows = {(row[0], row[1]): row[2:4] for row in rows_below(page(found), "Paired differences")}

    assert rows["counterfactual", "additive"] == ["1", "+0.100"]
    assert rows["counterfactual", "no change"][0] == "2"


def by_group(column: str) -> Results:
    """Three types with three perturbations each, alike within a type or within a perturbation."""
    level = {"x": 0.2, "y": 0.5, "z": 0.8, "A": 0.2, "B": 0.5, "C": 0.8}
    rows = {}
    for kind in "ABC":
        for name in "xyz":
            group = kind if column == "cell_type" else name
            rows[f"{kind} × {name}"] = [{"pearson": level[group], "group": group}]
    return results(counterfactual=rows)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            "cell_type",
            "those of one cell type are drawn together, since they share its control cells and a "
            "model that never saw it perturbed. It speaks for other cell types and takes the "
            "perturbations as they are.",
        ),
        (
            "perturbation",
            "those of one perturbation are drawn together, since they share its effect. It speaks "
            "for other perturbations and takes the cell types as they are.",
        ),
    ],
)
def test_conditions_that_share_something_are_drawn_together_and_this_is_said(column, said):
    lines = page(by_group(column))

    text = "".join(lines)
    assert f"95 % interval over 3 {column.replace('_', ' ')}s" in text
    assert f"of the 9 conditions, {said}" in text
    estimate, low, high = rows_below(lines, "## All methods")[1][1].replace(",", "").split()
    # Student's t of three groups, not of nine conditions; no Pearson is above 1. 4000 draws know a
    # spread to about 1 %.
    assert float(low.strip("[")) == pytest.approx(0.5 - 4.303 * 0.3 / 3**0.5, abs=0.03)
    assert (estimate, high) == ("0.500", "1.000]")


def test_one_group_has_no_interval():
    rows = {f"A × {name}": [{"pearson": value}] for name, value in (("x", 0.1), ("y", 0.3))}

    lines = page(results(counterfactual=rows))

    assert "without intervals, since 1 cell type says nothing about others." in "".join(lines)
    assert rows_below(lines, "## All methods")[1][1] == "0.200"


def test_conditions_that_share_nothing_need_no_word_on_groups():
    text = "".join(page(results(counterfactual=of_mode("pearson", A=0.1, B=0.3))))

    assert "interval over 2 cell types (`sedd.evaluation.uncertainty`). `of attainable`" in text


def test_an_undefined_likeness_is_no_silent_alarm():
    rows = [
        told_apart("counterfactual", seed=0, predicted=NAN),
        told_apart("population", seed=0, predicted=NAN),
        told_apart("population", seed=1),
        told_apart("mean_of_others", collapsed=True),
    ]

    lines = page(results(rows, counterfactual=of_mode("pearson", A=1.0)))

    alarm = {row[1]: row[-1] for row in rows_below(lines, "## Telling perturbations apart")[1:]}
    assert alarm == {"counterfactual": "n/a", "population": "no", "mean of others": "yes"}


def test_variants_stand_with_what_their_training_reached_and_cost():
    rows = of_mode("pearson", A=0.9)
    first = results(counterfactual=rows, population=rows)
    small = [
        first.facts.assign(
            variant="small", validation_nelbo=nelbo, cpu_seconds_training=cost, trained_model=name
        )
        for nelbo, cost, name in ((0.2, 30.0, "a"), (0.3, 50.0, "b"))
    ]
    found = replace(
        first,
        scores=pd.concat([first.scores, first.scores.assign(variant="small", pearson=0.7)]),
        facts=pd.concat([first.facts.assign(validation_nelbo=NAN), *small]),
    )

    head, *rows = rows_below(page(found, variants={"full": {}, "small": {}}), "## Variants")

    assert head[-4:] == [
        "Pearson against the first", "energy against the first", "validation NELBO",
        "training (CPU s)",
    ]  # fmt: skip
    assert [(row[0], row[1], *row[-2:]) for row in rows] == [
        ("full", "counterfactual", "n/a", "90"), ("full", "population", "n/a", "90"),
        ("small", "counterfactual", "0.2500", "40"), ("small", "population", "0.2500", "40"),
    ]  # fmt: skip
    assert rows[2][-4] == "-0.200"
