"""Tables of verdicts: means over cell types, who is best, what was left out."""

import re
from dataclasses import fields

import pandas as pd
import pytest

from sedd.evaluation.baselines import ADDITIVE, CEILING
from sedd.evaluation.judge_tables import (
    Judged,
    judge_metrics,
    judge_report,
    judge_summary,
    left_out_table,
    verdict_table,
)
from sedd.evaluation.judges import ALL, CELL_EVAL, LeftOut, Verdict
from sedd.evaluation.metrics import Scores
from sedd.evaluation.report import ConditionResult, Provenance, write_html_report

ONE = LeftOut("discrimination_score_l1", ALL, "it ranks: needs 2 perturbations, here 1")
ELSEWHERE = LeftOut("pr_auc", "IFNb", "no number")


def judged(method: str, cell_type: str = "B cells", left_out=(ONE,), **values: float) -> Judged:
    per_perturbation = {metric: {"IFNb": value} for metric, value in values.items()}
    verdict = Verdict(CELL_EVAL, "0.8.2", per_perturbation, values, tuple(left_out))
    return Judged(method, cell_type, verdict)


def test_the_long_table_holds_every_number_once_per_perturbation_and_once_for_all():
    table = verdict_table([judged("population", pearson_delta=0.75)])

    assert table.to_dict("records") == [
        {
            "judge": "cell-eval",
            "version": "0.8.2",
            "method": "population",
            "cell_type": "B cells",
            "perturbation": perturbation,
            "metric": "pearson_delta",
            "value": 0.75,
        }
        for perturbation in ("all", "IFNb")
    ]


def test_what_was_left_out_stands_in_a_table_of_its_own():
    table = left_out_table([judged("population", left_out=(ONE, ELSEWHERE))])

    assert list(table["metric"]) == ["discrimination_score_l1", "pr_auc"]
    assert list(table["reason"]) == [ONE.reason, "no number"]


def test_the_summary_is_the_mean_over_cell_types_without_columns_that_say_nothing():
    entries = [
        judged(CEILING, pearson_delta=1.0),
        judged(ADDITIVE, pearson_delta=0.5, mae=0.25),
        judged(ADDITIVE, "NK cells", pearson_delta=0.75),
    ]

    table = judge_summary(entries, CELL_EVAL)

    expected = pd.DataFrame(
        {"pearson_delta": [0.625, 1.0], "mae": [0.25, float("nan")], "cell_types": [2, 1]},
        index=[ADDITIVE, CEILING],
    )
    pd.testing.assert_frame_equal(table, expected)


def test_the_best_is_the_highest_or_lowest_by_metric_and_never_the_ceiling():
    (report,) = judge_report(
        [
            judged("population", pearson_delta=0.9, mae=0.3),
            judged(ADDITIVE, pearson_delta=0.8, mae=0.1),
            judged(CEILING, pearson_delta=0.99, mae=0.01),
        ]
    )

    assert report.best == {"pearson_delta": {"population"}, "mae": {ADDITIVE}}


def test_notes_name_what_was_left_out_of_whole_cell_types_once():
    nothing = LeftOut("pearson_delta", ALL, "the judge gives no number")
    (report,) = judge_report(
        [
            judged("population", left_out=(ONE, ELSEWHERE), mae=0.1),
            judged(ADDITIVE, "NK cells", left_out=(ONE, nothing), mae=0.1),
        ]
    )

    assert report.notes == (
        f"Left out (B cells, NK cells): discrimination_score_l1, {ONE.reason}.",
        "Left out for additive (NK cells): pearson_delta, the judge gives no number.",
    )


def test_tracked_names_say_judge_method_and_metric():
    entries = [judged(ADDITIVE, mae=0.25), judged(ADDITIVE, "NK cells", mae=0.75)]

    assert judge_metrics(entries) == {"judge/cell-eval/additive/mae": pytest.approx(0.5)}
    assert judge_report([]) == ()


def test_the_report_shows_each_judge_with_best_values_and_notes_as_text(tmp_path):
    scores = Scores(**{field.name: 0.5 for field in fields(Scores)})
    result = ConditionResult("B cells", "IFNb", 50, 40, 30, {"population": scores})
    strange = LeftOut("mae", ALL, "a <b> reason")
    entries = [
        judged("population", left_out=(strange,), pearson_delta=0.9375),
        judged(ADDITIVE, pearson_delta=0.8125),
    ]

    write_html_report(
        tmp_path / "report.html",
        [result],
        provenance=Provenance("d", "s", "m", 7, "python", {}),
        tables=judge_report(entries),
    )

    page = (tmp_path / "report.html").read_text()
    section = page[page.index("The judge cell-eval 0.8.2") :]
    assert re.search(
        r'population.*?<td class="best">0\.938</td>', section, re.DOTALL | re.IGNORECASE
    )
    assert "<td>0.812</td>" in section
    assert "(B cells): mae, a &lt;b&gt; reason." in section
