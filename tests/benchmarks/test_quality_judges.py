"""The judges are asked once for each fold, and their numbers stand on the page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from benchmarks.quality_job import MODES, read_predicted
from benchmarks.quality_judges import judge_job, judges_section
from benchmarks.quality_results import (
    ASKED_BY,
    JUDGED,
    is_judged,
    judging_digest,
    read_results,
)
from benchmarks.quality_score import read_truth, score_job
from benchmarks.quality_study import job_from_json
from sedd.data.cells import write_h5ad
from sedd.errors import UsageError
from tests.worlds import tiny_cells

FIRST_METRICS = {"cell-eval": "pearson_delta", "cell-eval2": "pds_cosine"}


def verdict(value: float, **changes) -> dict:
    row = {
        "fold": "A", "judge": "cell-eval", "version": "0.8.2", "method": "population",
        "cell_type": "A", "perturbation": "all", "metric": "pearson_delta", "value": value,
        "seed": 0,
    }  # fmt: skip
    return row | changes


def left_out(**changes) -> dict:
    row = {"fold": "A", "judge": "cell-eval", "method": "population", "cell_type": "A"}
    row |= {"perturbation": "all", "metric": "pds", "reason": "needs 2 perturbations"}
    return row | changes


def test_the_section_has_means_over_folds_and_names_what_is_left_out():
    judged = [
        verdict(0.5),
        verdict(0.7, fold="B", cell_type="B"),
        verdict(9.0, seed=1),
        verdict(9.0, perturbation="x"),
        verdict(0.1, metric="mae"),
        verdict(0.25, method="additive", metric="mae"),
        verdict(0.9, metric="of no headline"),
        verdict(0.8, judge="cell-eval2", version="0.20.0", metric="pds_cosine"),
    ]
    unsaid = [
        left_out(metric="pds_b"),
        left_out(metric="pds_a"),
        left_out(metric="pds_a", fold="B"),
        left_out(metric="auc", perturbation="x"),
        left_out(metric="auc", method="no_change"),
        left_out(metric="other", judge="cell-eval2", reason="why"),
    ]

    lines = judges_section(pd.DataFrame(judged), pd.DataFrame(unsaid)).splitlines()

    assert lines[0].startswith("**cell-eval 0.8.2**, first seed of each fold, 2 cell types. ")
    assert lines[2:6] == [
        "| method | pearson_delta | mae (1 of 2) |",
        "| --- | --- | --- |",
        "| population | 0.600 | 0.100 |",
        "| additive | n/a | 0.250 |",
    ]
    assert lines[7] == "Left out: pds_a, pds_b (needs 2 perturbations)."
    assert lines[9].startswith("**cell-eval2 0.20.0**, first seed of each fold, 1 cell type. ")
    assert lines[11:14] == ["| method | pds_cosine |", "| --- | --- |", "| population | 0.800 |"]
    assert lines[15:] == ["Left out: other (why)."]


def test_the_cells_a_judge_gets_started_from_the_controls_that_are_named(predicted):
    """A judge divides by the library size of the control cell that a generated one came from."""
    job = job_from_json((predicted / "job.json").read_text())
    truth = read_truth(job, predicted, tokens=False)

    for mode in MODES:
        for (cell_type, _), made in read_predicted(predicted, mode, "counts").items():
            np.testing.assert_array_equal(made.depth, truth.cells.depth[made.control_row])
            assert set(truth.cells.cell_type[made.control_row]) == {cell_type}
            assert set(truth.cells.perturbation[made.control_row]) == {"control"}


def test_log1p_values_cannot_be_judged_and_this_is_said_first(run_study, tmp_path, capsys):
    cells = tiny_cells()
    log1p = sparse.csr_array(cells.log1p_cp10k())
    write_h5ad(replace(cells, expression=log1p), tmp_path / "cells.h5ad")

    assert run_study("--judges") == UsageError.exit_code

    assert "take raw counts and these cells hold log1p" in capsys.readouterr().err
    assert not (tmp_path / "work" / "trained").exists()


def test_tables_of_a_judge_who_was_asked_by_other_sources_do_not_count(tmp_path):
    for name in JUDGED:
        (tmp_path / name).write_text("judge\n")
    assert not is_judged(tmp_path)

    (tmp_path / ASKED_BY).write_text(judging_digest())
    assert is_judged(tmp_path)

    (tmp_path / ASKED_BY).write_text("0" * 64)
    assert not is_judged(tmp_path)


def rows_of(table: pd.DataFrame, judge: str) -> pd.DataFrame:
    chosen = table[(table["judge"] == judge) & (table["perturbation"] == "all")]
    return chosen[chosen["metric"] == FIRST_METRICS[judge]]


@pytest.mark.slow
def test_the_real_judges_are_asked_about_every_method(predicted: Path):
    score_job(predicted, baselines=True)
    assert not is_judged(predicted)

    judge_job(predicted)

    found = read_results([predicted])
    methods = {
        record["method"]
        for record in json.loads((predicted / "scores.json").read_text())["records"]
    }
    assert is_judged(predicted)
    assert len(methods) == 8
    assert set(rows_of(found.judged, "cell-eval")["method"]) == methods - {"no_change"}
    pds = rows_of(found.judged, "cell-eval2").set_index("method")["value"]
    assert set(pds.index) == methods
    assert pds["no_change"] == 0.5
    assert pds["split_half_ceiling"] == 1
    assert set(found.left_out["judge"]) <= set(FIRST_METRICS)


@pytest.mark.slow
def test_judges_are_asked_for_the_first_seed_of_a_fold_and_once(run_study, tmp_path, capsys, runs):
    study = tmp_path / "study.yaml"
    study.write_text(study.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    assert run_study() == 0

    assert run_study("--judges") == 0

    out = capsys.readouterr().out
    assert "4 jobs, 2 done before" in out
    assert "## The field's judges" in out
    asked = sorted(f.name for f in (tmp_path / "work" / "tiny").iterdir() if is_judged(f))
    assert [name[: len("full-B_cell-0")] for name in asked] == ["full-B_cell-0", "full-T_cell-0"]
    (page,) = (tmp_path / "benchmarks" / "results").iterdir()
    assert "--data_dir DATA --judges`" in page.read_text()
    files = [tmp_path / "work" / "tiny" / asked[0] / name for name in JUDGED]
    before = [file.stat().st_mtime_ns for file in files]
    assert run_study("--judges") == 0
    assert "4 jobs, 4 done before" in capsys.readouterr().out
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(runs()) == 4
