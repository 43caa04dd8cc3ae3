"""The model card: failures come from the scores, and labels stay text."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sedd.evaluation.baselines import ADDITIVE, CEILING, CONTROL_HISTOGRAM, NO_CHANGE
from sedd.evaluation.card import CardFacts, code, known_failures, plain, write_model_card
from sedd.evaluation.discrimination import Likeness, Separation
from sedd.evaluation.metrics import Limits, Scores
from sedd.evaluation.report import ConditionResult, Provenance
from sedd.evaluation.trust import Trust
from sedd.evaluation.uncertainty import Interval
from sedd.evaluation.variance import VarianceCalibration
from sedd.evaluation.wording import format_value

GOOD = Scores(
    pearson=0.95,
    mse=0.01,
    energy_distance=0.1,
    zero_fraction_error=0.01,
    variance_ratio=1.0,
    common_degs=0.8,
    correlation_structure=0.9,
)
BASE = replace(GOOD, pearson=0.5, energy_distance=1.0, common_degs=0.3, variance_ratio=3.0)
NAN = float("nan")
FACTS = CardFacts(
    name="kang",
    data_file="kang.h5ad",
    num_cells=4448,
    num_genes=1176,
    cell_types=("B cells", "T <cells> | x"),
    perturbations=("IFNb",),
    control_name="control",
    split_kind="unseen_cell_type",
    held_out=(("B cells", "IFNb"),),
    num_parameters=12345,
    training_step=600,
    training_seed=3,
    training_seconds=61.5,
    mode="counterfactual",
    num_steps=16,
    commands=("python -m pipelines.evaluate --experiment_dir kang",),
    provenance=Provenance("d1" * 32, "5" * 64, "m0" * 32, 7, "evaluate", {"torch": "2.13"}),
)


def condition(model: Scores = GOOD, *, reliability: float = 0.97, **others: Scores):
    scores = {"counterfactual": model, ADDITIVE: BASE, NO_CHANGE: BASE, **others}
    return ConditionResult("B cells", "IFNb", 50, 40, 30, scores, Limits(reliability, 0.05))


def cases(*results: ConditionResult, separations: tuple[Separation, ...] = ()):
    return {f.title: f.cases for f in known_failures(results, separations) if f.cases}


def separated(method: str, predicted: float, real: float = 0.2) -> Separation:
    return Separation("K562", method, 5, 5, 0.9, 0.9, Likeness(predicted, real, 5))


def test_a_model_that_passes_everywhere_has_no_known_failure():
    assert cases(condition(), separations=(separated("counterfactual", 0.3),)) == {}


@pytest.mark.parametrize(
    ("metric", "passing", "failing", "title"),
    [
        ("variance_ratio", (0.9, 1.15), (0.89, 1.16), "Variance ratio outside 0.9 to 1.15"),
        ("zero_fraction_error", (0.02,), (0.021,), "Zero-fraction error above 0.02"),
        ("common_degs", (0.6, NAN), (0.59,), "Fewer than 60 of the top 100 genes in common"),
        ("correlation_structure", (0.8, 1.3), (0.79,), "Gene–gene correlations below 0.8"),
    ],
)
def test_each_check_fails_beyond_its_bound_and_says_where(metric, passing, failing, title):
    for value in passing:
        assert cases(condition(replace(GOOD, **{metric: value}))) == {}
    for value in failing:
        (case,) = cases(condition(replace(GOOD, **{metric: value})))[title]
        assert case == f"B cells × IFNb, counterfactual ({format_value(value)})"


def test_a_better_baseline_is_named_with_both_values_and_the_ceiling_is_none():
    found = cases(condition(replace(GOOD, pearson=0.4), **{CEILING: GOOD}))

    assert found == {
        "A baseline is better on Pearson": (
            "B cells × IFNb, counterfactual (0.400 against 0.500 by additive)",
        )
    }


def test_it_is_said_whether_the_intervals_of_model_and_baseline_overlap():
    calibration = VarianceCalibration(1.0, 1.0, 1.0)

    def told(reach: float) -> str:
        trust = {
            name: Trust({"pearson": Interval(mid, mid - reach, mid + reach)}, calibration)
            for name, mid in (("counterfactual", 0.4), (ADDITIVE, 0.5))
        }
        result = replace(condition(replace(GOOD, pearson=0.4)), trust=trust)
        (case,) = cases(result)["A baseline is better on Pearson"]
        return case

    assert told(0.06).endswith("by additive, intervals overlap)")
    assert told(0.04).endswith("by additive, intervals apart)")


def test_energy_counts_by_its_size_and_not_by_its_sign():
    assert cases(condition(replace(GOOD, energy_distance=-0.2))) == {}
    assert list(cases(condition(replace(GOOD, energy_distance=-1.2)))) == [
        "A baseline is better on Energy"
    ]


def test_shifts_that_are_noise_and_collapsed_predictions_are_failures_of_their_own():
    found = cases(
        condition(reliability=0.31),
        separations=(separated("population", 0.9), separated(ADDITIVE, 1.0)),
    )

    assert found == {
        "The real shift is hardly reproducible, so scores mean little": (
            "B cells × IFNb (reliability 0.310)",
        ),
        "Predictions of different perturbations are too alike": (
            "K562, population (likeness 0.900, real 0.200)",
        ),
    }


def written(folder: Path, result: ConditionResult, facts: CardFacts = FACTS, *separations):
    write_model_card(folder / "evaluation" / "model_card.md", [result], facts, separations)
    return (folder / "evaluation" / "model_card.md").read_text(encoding="utf-8")


def test_the_card_shows_facts_scores_intervals_and_failures(tmp_path: Path):
    trust = {
        "counterfactual": Trust(
            {"pearson": Interval(0.95, 0.93, 0.97)}, VarianceCalibration(0.88, 0.77, 0.66)
        )
    }
    result = replace(
        condition(replace(GOOD, variance_ratio=0.5)), trust=trust, nelbo={CONTROL_HISTOGRAM: 1.4}
    )

    card = written(tmp_path, result, FACTS, separated("counterfactual", 0.9))

    for known in (
        "12345 parameters, step 600; scored on 1 held-out condition (`unseen_cell_type`)",
        "Reliability of the real shift 0.970",
        "0.950 (0.930 to 0.970)",
        "| counterfactual | 0.880 | 0.770 | 0.660 |",
        "**Variance ratio outside 0.9 to 1.15**: B cells × IFNb, counterfactual (0.500).",
        "No case of: a baseline is better on Pearson; ",
        "| K562 | counterfactual | 5 | 0.900 | 0.900 | 0.900 | 0.200 | ALARM |",
        "61.5 s of training steps",
        "`kang.h5ad`, digest `" + "d1" * 32,
        "hash `" + "5" * 64,
        "seed 3, 61.5",
        "python -m pipelines.evaluate --experiment_dir kang\n```",
    ):
        assert known in card
    # Pearson / attainable is the last column of the model's row: .95 / .97.
    (row,) = re.findall(r"\| counterfactual \| 0\.950 \(.*", card)
    assert row.endswith("| 0.979 |")


def test_every_table_of_the_card_has_as_many_cells_in_a_row_as_columns(tmp_path: Path):
    result = replace(condition(), cell_type="a | b", perturbation="`c` | *d*")

    card = written(tmp_path, result, FACTS, separated("x | y", 0.1))

    tables = re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        columns = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(columns)) == 1


def test_unknown_training_time_is_said(tmp_path: Path):
    card = written(tmp_path, condition(), replace(FACTS, training_seconds=None))

    assert "time not recorded" in card
    assert "- No check failed in any condition." in card


def test_labels_cannot_become_markup():
    assert plain("<b>*x*|[y](z)\n# h") == r"&lt;b&gt;\*x\*\|\[y\](z) \# h"
    assert code("a`b\n|c") == "`a'b ¦c`"
