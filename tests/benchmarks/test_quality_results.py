"""What jobs wrote is read as it was meant, and scores of other sources do not count."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality_results, quality_study
from benchmarks.quality_job import MODES
from benchmarks.quality_results import (
    difference_of,
    is_scored,
    mean_of,
    read_results,
    scoring_digest,
)
from benchmarks.quality_study import Job, Study, job_to_json, plan
from sedd.evaluation.metrics import Limits, Scores
from tests.benchmarks.tables import of_mode, scores
from tests.worlds import tiny_cells

SCORES = asdict(Scores(0.5, 0.1, 0.2, 0.01, 1.0, 0.5, 0.4)) | asdict(Limits(0.9, 0.02))


def jobs(folds: str, *, data_dir: Path = Path("data"), **changes) -> list[Job]:
    config = {"data": {"train_data_path": "cells.h5ad", "num_genes": 20}}
    content = {"name": "tiny", "question": "?", "folds": folds, "seeds": (0,), "config": config}
    study = Study(**content | {"variants": {"full": {}}} | changes)
    return list(plan(study, tiny_cells(), data_dir))


def written(folder: Path, job: Job, methods: tuple[str, ...] = MODES, **content) -> Path:
    """A folder as a scored job leaves it."""
    folder.mkdir()
    records = [
        {"cell_type": kind, "perturbation": name, "method": method} | SCORES
        for kind, name in job.conditions
        for method in methods
    ]
    content = {"scoring": scoring_digest(), "records": records, "separation": []} | content
    (folder / "job.json").write_text(job_to_json(job))
    (folder / "scores.json").write_text(json.dumps(content))
    (folder / "facts.json").write_text(json.dumps({"commit": "abc"}))
    return folder


# Whose scores they are.


def test_the_digest_of_scoring_changes_with_its_sources_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(quality_study, "ROOT", tmp_path)
    sources = {
        "sedd/evaluation/metrics.py": True,
        "sedd/evaluation/deeper/more.py": True,
        "benchmarks/quality_score.py": True,
        "benchmarks/quality_vectors.py": True,
        "pipelines/scoring.py": True,
        "sedd/evaluation/report.html.j2": False,
        "benchmarks/quality_table.py": False,
    }
    for name in sources:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    before = scoring_digest()

    for name, counts in sources.items():
        (tmp_path / name).write_text("after")
        assert (scoring_digest() != before) is counts, name
        (tmp_path / name).write_text("before")
    assert scoring_digest() == before


@pytest.mark.parametrize(
    ("methods", "content", "alone", "beside"),
    [
        (MODES, {}, True, False),
        ((*MODES, "no_change"), {}, True, True),
        ((*MODES, "split_half_ceiling"), {}, True, False),
        ((*MODES, "no_change"), {"scoring": "of other sources"}, False, False),
        ((*MODES, "no_change"), {"scoring": None}, False, False),
    ],
)
def test_scores_count_by_the_sources_of_now_and_with_the_baselines_that_are_wanted(
    tmp_path, methods, content, alone, beside
):
    folder = written(tmp_path / "job", jobs("pairs")[0], methods, **content)

    assert is_scored(folder, baselines=False) is alone
    assert is_scored(folder, baselines=True) is beside
    assert not is_scored(tmp_path / "elsewhere", baselines=False)


def test_scores_of_before_there_was_a_digest_do_not_count(tmp_path):
    folder = written(tmp_path / "job", jobs("pairs")[0])
    content = json.loads((folder / "scores.json").read_text())
    content.pop("scoring")
    (folder / "scores.json").write_text(json.dumps(content))

    assert not is_scored(folder, baselines=False)
    assert read_results([folder]).facts["scoring"].tolist() == ["unknown"]


def test_the_scoring_of_a_page_is_that_of_its_scores(tmp_path, monkeypatch):
    folder = written(tmp_path / "job", jobs("pairs")[0])
    before = scoring_digest()
    monkeypatch.setattr(quality_results, "scoring_digest", lambda: "another")

    assert read_results([folder]).facts["scoring"].tolist() == [before]


# Tables.


def test_the_seed_is_the_trainings_whatever_a_path_is_called(tmp_path):
    (job,) = jobs(
        "cell_types", held_out=("B cell",), seeds=(7,), data_dir=Path("training:\nseed: 5")
    )

    found = read_results([written(tmp_path / "job", job)])

    assert set(found.scores["seed"]) == set(found.facts["seed"]) == {7}


@pytest.mark.parametrize(
    ("folds", "changes", "shared"),
    [
        ("cell_types", {}, "cell_type"),
        ("pairs", {}, "perturbation"),
        ("perturbations", {"held_out": ("raise", "lower")}, "perturbation"),
        ("perturbations", {"held_out": ("raise",)}, "cell_type"),
    ],
)
def test_conditions_go_with_those_that_share_what_folds_are_about(tmp_path, folds, changes, shared):
    folders = [
        written(tmp_path / str(number), job) for number, job in enumerate(jobs(folds, **changes))
    ]

    found = read_results(folders).scores

    assert found["group"].tolist() == found[shared].tolist()
    assert found[shared].nunique() > 1


# Intervals.


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [
        ("pearson", -1.0, 1.0),
        ("common_degs", 0.0, 1.0),
        ("mse", 0.0, 5.58),
        ("energy_distance", -4.58, 5.58),
    ],
)
def test_bounds_stay_in_the_range_of_the_score(metric, low, high):
    """Between two conditions Student's t is 12.706, times .8 / 2; 4000 draws know it to 2 %."""
    found = mean_of(scores(method=of_mode(metric, A=0.1, B=0.9)), metric)

    assert found.estimate == 0.5
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.2)
    if metric != "energy_distance":
        assert found.low == low


def test_a_difference_reaches_as_far_as_two_scores_can_lie_apart():
    mine = scores(method=of_mode("common_degs", A=0.0, B=1.0))
    theirs = scores(method=of_mode("common_degs", A=0.1, B=0.2))

    found = difference_of(mine, theirs, "common_degs")
    beside_nothing = difference_of(mine, mine.assign(common_degs=0.0), "common_degs")

    assert (found.low, found.high) == (-1.0, 1.0)
    assert (beside_nothing.low, beside_nothing.high) == (0.0, 1.0)
    assert (found.estimate, beside_nothing.estimate) == (pytest.approx(0.35), 0.5)


def test_conditions_of_one_group_are_drawn_together():
    rows = scores(method=of_mode("energy_distance", A=0.1, B=0.3, C=0.2, D=0.4))
    pairs = rows.assign(group=["one", "one", "two", "two"])
    zero = pairs.assign(energy_distance=0.0)

    found = mean_of(pairs, "energy_distance")

    # Two groups with means of .2 and .3.
    assert found.low == pytest.approx(0.25 - 12.706 * 0.05, abs=0.03)
    assert mean_of(rows, "energy_distance").low > 0
    assert difference_of(pairs, zero, "energy_distance") == found
    assert np.isnan(mean_of(rows.assign(group="all"), "energy_distance").low)
