"""What later sittings of a study do: score anew, ask the judges, refuse what cannot be run."""

import argparse
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.quality_results import ASKED_BY, JUDGED, judging_digest
from benchmarks.quality_study import Study
from sedd.data.cells import write_h5ad
from tests.worlds import tiny_cells

KANG = str(quality.ROOT / "benchmarks" / "configs" / "quality_kang.yaml")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch) -> None:
    """Jobs run in a thread: starting processes takes longer than the jobs of these studies."""
    monkeypatch.setattr(quality, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))


def folders(tmp_path: Path) -> dict[str, Path]:
    """Folder of each job, by variant, fold and seed."""
    found = (tmp_path / "work" / "tiny").iterdir()
    return {re.sub("-[0-9a-f]{16}$", "", folder.name): folder for folder in found}


def read_scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def methods(folder: Path) -> set[str]:
    return {record["method"] for record in read_scores(folder)["records"]}


def change_study(tmp_path: Path, old: str, new: str) -> None:
    text = (tmp_path / "study.yaml").read_text()
    assert old in text
    (tmp_path / "study.yaml").write_text(text.replace(old, new))


def pages(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "benchmarks" / "results").iterdir())


def test_scores_of_other_sources_never_stand_beside_new_ones(run_study, tmp_path, capsys):
    assert run_study() == 0
    (page,) = pages(tmp_path)
    page.unlink()
    folder = folders(tmp_path)["full-B_cell-0"]
    old = read_scores(folder)
    stale = {**old, "scoring": "of other sources"}
    stale["records"] = [record | {"pearson": 0.123} for record in old["records"]]
    (folder / "scores.json").write_text(json.dumps(stale))
    cells = (folder / "population.npz").stat().st_mtime_ns
    capsys.readouterr()

    assert run_study("--max_minutes", 0) == 75

    said = capsys.readouterr().out
    assert "2 jobs, 1 done before" in said
    assert "T cell × raise" in said
    assert "B cell × raise" not in said
    assert not pages(tmp_path)

    assert run_study() == 0

    assert read_scores(folder) == old
    assert (folder / "population.npz").stat().st_mtime_ns == cells
    (page,) = pages(tmp_path)
    assert f"of the scores {old['scoring'][:12]};" in page.read_text(encoding="utf-8")


def test_a_page_stands_while_the_judges_are_still_asked(run_study, tmp_path, capsys, monkeypatch):
    change_study(tmp_path, "seeds: [0]", "seeds: [0, 1]\nheld_out: [B cell]")
    change_study(tmp_path, "variants:", "targets: [pearson_above_additive]\nvariants:")
    assert run_study() == 0
    (page,) = pages(tmp_path)
    page.unlink()
    before = capsys.readouterr().out
    monkeypatch.setattr(quality, "require_judgeable", lambda *_: None)

    assert run_study("--judges", "--max_minutes", 0) == 75

    said = capsys.readouterr().out
    assert "2 jobs, 1 done before" in said
    assert said.endswith("1 of 2 jobs done\n")
    assert not pages(tmp_path)
    start = before.index("## Targets")
    assert "Pearson above additive" in before[start:]
    assert said[said.index("## Targets") :].splitlines()[:-1] == before[start:].splitlines()[:-1]

    lead = folders(tmp_path)["full-B_cell-0"]
    (lead / ASKED_BY).write_text(judging_digest())
    for name in JUDGED:
        (lead / name).write_text("method,metric,perturbation,judge,version,cell_type,reason\n")
    assert run_study("--judges", "--max_minutes", 0) == 0
    assert len(pages(tmp_path)) == 1


def test_another_seed_that_leads_a_fold_gets_the_baselines(run_study, tmp_path, capsys):
    change_study(tmp_path, "seeds: [0]", "seeds: [0, 1]\nheld_out: [B cell]")
    assert run_study() == 0
    first, second = (folders(tmp_path)[f"full-B_cell-{seed}"] for seed in (0, 1))
    assert "additive" in methods(first) - methods(second)
    cells = (second / "population.npz").stat().st_mtime_ns
    change_study(tmp_path, "[0, 1]", "[1, 0]")
    capsys.readouterr()

    assert run_study() == 0

    assert "2 jobs, 1 done before" in capsys.readouterr().out
    assert methods(second) == methods(first)
    assert (second / "population.npz").stat().st_mtime_ns == cells


def test_each_job_has_one_mlflow_run_over_all_sittings(run_study, tmp_path, runs):
    assert run_study() == 0
    (folders(tmp_path)["full-B_cell-0"] / "scores.json").unlink()

    assert run_study() == 0

    assert sorted(run.data.tags["fold"] for run in runs()) == ["B cell", "T cell"]


def test_folds_of_one_name_are_led_by_a_job_each(tmp_path):
    """Only the first three perturbations of a fold are in its name."""
    cells = tiny_cells()
    names = [f"p{number}" for number in range(5)]
    for kind in sorted(set(cells.cell_type)):
        rows = (cells.cell_type == kind) & (cells.perturbation != "control")
        cells.perturbation[rows] = [names[place % 5] for place in range(rows.sum())]
    write_h5ad(cells, tmp_path / "cells.h5ad")
    study = Study(
        name="tiny",
        question="?",
        folds="perturbations",
        held_out=(("p0", "p1", "p2", "p3"), ("p0", "p1", "p2", "p4")),
        seeds=(0, 1),
        min_cells=5,
        config={"data": {"train_data_path": "cells.h5ad", "num_genes": 20}},
        variants={"full": {}},
    )
    arguments = argparse.Namespace(data_dir=tmp_path, work_dir=tmp_path / "work", judges=False)

    tasks = list(quality._tasks(study, arguments))

    assert [task.folder.name[:-17] for task in tasks] == [
        "full-p0,_p1,_p2,_…-0", "full-p0,_p1,_p2,_…-0",
        "full-p0,_p1,_p2,_…-1", "full-p0,_p1,_p2,_…-1",
    ]  # fmt: skip
    assert len({task.folder for task in tasks}) == 4
    assert [task.baselines for task in tasks] == [True, True, False, False]


# What cannot be run.


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("folds: cell_types", "folds: types", 2, r"study\.yaml is not a quality study: .*folds"),
        ("name: tiny", "name: [", 2, r"study\.yaml is not plain YAML"),
        ("seeds: [0]", "targets: [fame]", 2, r"'tiny': no targets \['fame'\]"),
        ("num_genes: 20", "num_gene: 20", 2, "no such key. Did you mean 'num_genes'"),
        ("cells.h5ad", "missing.h5ad", 65, r"missing\.h5ad does not exist"),
        ("seeds: [0]", "held_out: [NK cell]", 65, r"nothing to score in the folds \['NK cell'\]"),
    ],
)
def test_a_study_that_cannot_be_run_is_one_message_and_a_code(
    run_study, tmp_path, capsys, old, new, code, message
):
    change_study(tmp_path, old, new)

    assert run_study() == code

    said = capsys.readouterr()
    assert re.match(f"error: .*{message}", said.err, re.DOTALL)
    assert "Traceback" not in said.err
    assert not said.out
    assert not (tmp_path / "work" / "trained").exists()


def test_a_wrong_command_is_one_message_and_a_code(tmp_path, capsys):
    for command, message in (
        (["nowhere.yaml", "--data_dir", "."], "nowhere.yaml does not exist"),
        (["study.yaml"], "required: --data_dir"),
        (["study.yaml", "--data_dir", ".", "--judge"], "--judge. Did you mean --judges?"),
        (
            [KANG, "--data_dir", str(tmp_path / "away")],
            "away is no folder. Name the one that holds",
        ),
    ):
        assert quality.main(command) == 2
        assert message in capsys.readouterr().err
