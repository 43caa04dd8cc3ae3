"""Tables and the HTML page: order, means, best values, and labels that try to be markup."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from sedd.evaluation.baselines import (
    ADDITIVE,
    CEILING,
    CONTROL_HISTOGRAM,
    MEAN_OF_OTHERS,
    NO_CHANGE,
    TOKEN_TILT,
)
from sedd.evaluation.metrics import Limits, Scores
from sedd.evaluation.plots import energy_figure
from sedd.evaluation.report import (
    ConditionResult,
    Provenance,
    ReportFigure,
    best_methods,
    format_value,
    order_methods,
    summary_table,
    to_markdown,
    verdicts,
    write_html_report,
    write_per_condition_csv,
)
from sedd.evaluation.trust import Trust
from sedd.evaluation.uncertainty import Interval
from sedd.evaluation.variance import VarianceCalibration

NAN = float("nan")
PROVENANCE = Provenance(
    data_digest="d1" * 32,
    split_hash="5" * 64,
    model_digest="m0" * 32,
    seed=7,
    command="python -m pipelines.evaluate --experiment_dir 'a & b'",
    versions={"sedd": "0.1.0", "numpy": "2.0"},
)


def scores(pearson: float = 0.5, **others: float) -> Scores:
    """Scores that are mediocre but for what is given."""
    mediocre = {
        "mse": 0.2,
        "energy_distance": 2.0,
        "zero_fraction_error": 0.1,
        "variance_ratio": 1.5,
        "common_degs": 0.5,
        "correlation_structure": 0.5,
    }
    return Scores(pearson=pearson, **(mediocre | others))


def condition(cell_type: str = "B cells", **methods: Scores) -> ConditionResult:
    return ConditionResult(cell_type, "IFNb", 50, 40, 30, methods)


def test_methods_stand_in_the_order_model_baselines_ceiling():
    methods = [CEILING, NO_CHANGE, "population", CONTROL_HISTOGRAM, ADDITIVE, "counterfactual"]

    assert order_methods([*methods, TOKEN_TILT, MEAN_OF_OTHERS, "population"]) == (
        "population",
        "counterfactual",
        ADDITIVE,
        TOKEN_TILT,
        MEAN_OF_OTHERS,
        NO_CHANGE,
        CONTROL_HISTOGRAM,
        CEILING,
    )


def test_the_summary_is_the_mean_over_conditions_and_counts_them():
    results = [
        condition("B cells", no_change=scores(0.0), model=scores(0.9)),
        condition("T cells", no_change=scores(0.2), model=scores(0.8, correlation_structure=NAN)),
        condition("NK cells", model=scores(0.4)),
    ]

    table = summary_table(results)

    assert list(table.index) == ["model", "no_change"]
    assert table.loc["model", "pearson"] == pytest.approx(0.7)
    assert table.loc["model", "correlation_structure"] == 0.5
    assert table.loc["no_change", "pearson"] == pytest.approx(0.1)
    assert table["conditions"].to_dict() == {"model": 3, "no_change": 2}
    assert "nelbo" not in table


def test_the_nelbo_is_a_column_where_there_is_one_and_the_histogram_a_row():
    results = [
        ConditionResult(
            "B cells",
            "IFNb",
            50,
            40,
            30,
            {"model": scores()},
            nelbo={"model": 1.25, CONTROL_HISTOGRAM: 1.5},
        )
    ]

    table = summary_table(results)

    assert table["nelbo"].to_dict() == {"model": 1.25, CONTROL_HISTOGRAM: 1.5}
    assert table["conditions"].to_dict() == {"model": 1, CONTROL_HISTOGRAM: 1}
    assert table.loc[CONTROL_HISTOGRAM].drop(["nelbo", "conditions"]).isna().all()


def test_the_best_value_knows_its_direction_and_leaves_the_ceiling_out():
    results = [
        condition(
            a=scores(0.9, energy_distance=-0.3, variance_ratio=0.5, correlation_structure=1.4),
            b=scores(0.8, energy_distance=0.2, variance_ratio=1.5, correlation_structure=0.7),
            no_change=scores(0.0, mse=0.1, variance_ratio=2.5),
            split_half_ceiling=scores(0.99, mse=0.0, energy_distance=0.0, variance_ratio=1.0),
        )
    ]

    best = best_methods(results)

    assert best["pearson"] == {"a"}
    assert best["mse"] == {NO_CHANGE}
    assert best["energy_distance"] == {"b"}
    assert best["zero_fraction_error"] == {"a", "b", NO_CHANGE}
    assert best["variance_ratio"] == {"b"}
    assert best["correlation_structure"] == {"b"}
    assert best["nelbo"] == frozenset()


def test_misses_in_opposite_directions_do_not_cancel():
    results = [
        condition("B cells", wild=scores(variance_ratio=0.5), steady=scores(variance_ratio=1.1)),
        condition("T cells", wild=scores(variance_ratio=1.5), steady=scores(variance_ratio=1.1)),
    ]

    assert summary_table(results).loc["wild", "variance_ratio"] == 1
    assert best_methods(results)["variance_ratio"] == {"steady"}


def test_the_verdict_says_where_the_model_beats_every_baseline():
    results = [
        condition(
            model=scores(0.9, energy_distance=0.4, mse=0.3),
            additive=scores(0.85, energy_distance=1.0),
            no_change=scores(0.0, energy_distance=0.5, mse=0.4),
            split_half_ceiling=scores(0.99),
        )
    ]

    assert verdicts(results) == (
        "model: ahead of every baseline on Pearson, Energy; "
        "not on MSE, Zeros, Variance, DEGs, Correlation.",
    )


def test_the_markdown_table_is_aligned_and_bold_only_where_asked():
    results = [condition(model=scores(0.956), no_change=scores(0.0, mse=NAN))]

    plain, bold = to_markdown(results, bold=False), to_markdown(results)

    lines = plain.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].startswith("| method    | Pearson |")
    assert lines[1].startswith("|-----------|--------:|")
    assert lines[2].startswith("| model     |   0.956 | 0.200 |")
    assert lines[3].startswith("| no change |    0.00 |   n/a |")
    assert "*" not in plain
    assert "**0.956**" in bold


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.95612, "0.956"),
        (11.279, "11.3"),
        (123.0, "123"),
        (-0.00898, "-0.00898"),
        (NAN, "n/a"),
        (3, "3"),
    ],
)
def test_values_have_three_significant_digits(value: float, text: str):
    assert format_value(value) == text


def test_the_csv_has_a_row_per_condition_and_method_that_reads_back(tmp_path: Path):
    path = tmp_path / "evaluation" / "per_condition.csv"
    with_limits = ConditionResult(
        'odd, "name"', "IFNb", 5, 4, 3, {"model": scores(0.25)}, Limits(0.75, 0.125)
    )

    write_per_condition_csv(path, [condition(model=scores(0.5, mse=NAN)), with_limits])

    table = pd.read_csv(path)
    assert {"pearson_of_attainable", "variance_slope", "energy_distance_low"} <= set(table)
    assert table["pearson_of_attainable"].tolist()[1] == pytest.approx(0.25 / 0.75)
    assert list(table["cell_type"]) == ["B cells", 'odd, "name"']
    assert list(table["pearson"]) == [0.5, 0.25]
    assert table["mse"].isna().tolist() == [True, False]
    assert table["control_floor"].isna().tolist() == [True, False]
    assert table.loc[1, ["num_real", "num_control", "num_generated"]].tolist() == [5, 4, 3]
    assert table.loc[1, ["shift_reliability", "control_floor"]].tolist() == [0.75, 0.125]
    assert [file.name for file in path.parent.iterdir()] == ["per_condition.csv"]


def test_a_report_without_conditions_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no evaluated conditions"):
        write_html_report(tmp_path / "report.html", [], provenance=PROVENANCE)

    assert list(tmp_path.iterdir()) == []


def written_report(folder: Path, *results: ConditionResult) -> str:
    path = folder / "report.html"
    write_html_report(
        path,
        results,
        provenance=PROVENANCE,
        figures=[
            ReportFigure("Energy of <b>", "One & all.", energy_figure({NO_CHANGE: [1.0, 2.0]}))
        ],
    )
    return path.read_text(encoding="utf-8")


def test_labels_cannot_become_markup(tmp_path: Path):
    label = "<script>alert('x')</script>"

    page = written_report(
        tmp_path,
        ConditionResult(label, '"><img src=x>', 5, 4, 3, {"<i>model</i>": scores()}),
    )

    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "Energy of &lt;b&gt;" in page
    assert "&#39;a &amp; b&#39;" in page


def test_the_report_needs_no_other_file_and_closes_its_tags(tmp_path: Path):
    page = written_report(tmp_path, condition(model=scores()))

    assert not re.search(r"""(src|href)\s*=\s*["']?(?!["']?data:)""", page)
    assert "url(" not in page
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    parser = OpenTags()
    parser.feed(page)
    assert parser.open == []


class OpenTags(HTMLParser):
    """Keeps the tags that are open; a tag closed out of turn is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_shows_scores_limits_and_where_they_come_from(tmp_path: Path):
    result = ConditionResult(
        "B cells",
        "IFNb",
        51,
        41,
        31,
        {"model": scores(0.912), NO_CHANGE: scores(0.0)},
        Limits(0.987, 0.0456),
        {"model": 1.23, CONTROL_HISTOGRAM: 1.45},
    )

    page = written_report(tmp_path, result, condition("T cells", model=scores(0.1)))

    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "B cells · IFNb" in text
    assert "51 real, 41 control and 31 generated cells" in text
    assert "real shift 0.987" in text
    assert "copies of the control cells 0.0456" in text
    assert 'class="best">0.912' in page
    for known in ("d1" * 32, "5" * 64, "m0" * 32, "pipelines.evaluate", "sedd 0.1.0", "numpy 2.0"):
        assert known in text
    # Each table has as many cells in a row as columns, also where a condition has no NELBO.
    for table in re.findall(r"<table>.*?</table>", page, flags=re.DOTALL):
        rows = [len(re.findall(r"<t[hd][ >]", row)) for row in table.split("<tr")[1:]]
        assert len(set(rows)) == 1


def test_intervals_stand_below_scores_and_below_means_of_several_conditions(tmp_path: Path):
    trust = Trust({"pearson": Interval(0.912, 0.845, 0.967)}, VarianceCalibration(1.0, 1.0, 1.0))
    one, other = condition(model=scores(0.912)), condition("T cells", model=scores(0.7))

    page = written_report(
        tmp_path,
        replace(one, trust={"model": trust}, limits=Limits(0.96, 0.05)),
        other,
        replace(other, cell_type="NK cells"),
    )

    assert "0.912<small>0.845 to 0.967</small></td>" in page
    # 0.771 is the mean of .912, .7 and .7; Student's t with 2 degrees of freedom is 4.30.
    low, high = (0.7707 + sign * 4.303 * 0.0707 for sign in (-1, 1))
    (bounds,) = re.findall(r"0\.771<small>(.*?) to (.*?)</small>", page)
    assert [float(bound) for bound in bounds] == pytest.approx([low, high], abs=0.02)
    assert "share of the attainable: model 0.950." in " ".join(page.split())


def test_the_nelbo_is_explained_only_where_it_is_shown(tmp_path: Path):
    page = written_report(tmp_path, condition(model=scores()))

    assert "NELBO" not in page
