"""A study holds out what it says, knows its jobs again, and goes on where it was cut off."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality, quality_job
from benchmarks.quality_study import (
    Job,
    Study,
    configure,
    job_from_json,
    job_to_json,
    load_job_cells,
    plan,
    read_study,
)
from benchmarks.quality_targets import require_targets
from sedd.data.cells import Cells, write_h5ad
from sedd.data.splits import SplitConfig, make_split
from sedd.errors import ConfigError, DataError
from tests.worlds import cells_of, tiny_cells

DATA = Path("data")
CONFIG = {"data": {"train_data_path": "cells.h5ad", "num_genes": 20}, "training": {"max_steps": 3}}


def study(folds: str, **changes) -> Study:
    content = {"name": "tiny", "question": "?", "folds": folds, "seeds": (0,), "min_cells": 40}
    return Study(**content | {"config": CONFIG, "variants": {"full": {}}} | changes)


def world(**sizes: int) -> Cells:
    """So many cells of each condition, named TYPE_PERTURBATION; two genes."""
    labels = [name.split("_") for name, size in sizes.items() for _ in range(size)]
    cell_type, perturbation = np.array(labels, dtype=object).T
    counts = np.random.default_rng(0).poisson(3, (len(labels), 2))
    return cells_of(counts, cell_type=cell_type, perturbation=perturbation)


def held_out(jobs: list[Job]) -> dict[str, tuple[tuple[str, str], ...]]:
    return {job.fold: job.conditions for job in jobs}


# What is held out.


def test_cell_types_are_held_out_one_after_the_other():
    jobs = list(plan(study("cell_types"), tiny_cells(), DATA))

    assert held_out(jobs) == {
        name: ((name, "lower"), (name, "raise")) for name in ("B cell", "T cell", "monocyte")
    }
    for job in jobs:
        assert job.config.split == SplitConfig(kind="unseen_cell_type", cell_types=(job.fold,))


def test_named_cell_types_alone_are_held_out_in_the_order_that_was_given():
    jobs = plan(study("cell_types", held_out=("monocyte", "B cell")), tiny_cells(), DATA)

    assert [job.fold for job in jobs] == ["monocyte", "B cell"]


def test_small_conditions_are_not_scored():
    cells = world(A_control=40, A_x=40, A_y=39, B_control=39, B_x=90, C_control=60, C_x=50, C_y=40)

    jobs = plan(study("cell_types"), cells, DATA)

    assert held_out(list(jobs)) == {"A": (("A", "x"),), "C": (("C", "x"), ("C", "y"))}


def test_only_the_named_types_take_part(tmp_path):
    write_h5ad(tiny_cells(), tmp_path / "cells.h5ad")
    config = configure(study("cell_types"), "full", seed=0, data_dir=tmp_path)
    everyone, some = (load_job_cells(config, only) for only in ((), ("T cell", "B cell")))

    kept = np.isin(everyone.cell_type, ["B cell", "T cell"])
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(some.names, everyone.names[kept])
    np.testing.assert_array_equal(some.expression.toarray(), everyone.expression[kept].toarray())
    with pytest.raises(DataError, match=r"cells\.h5ad has no cells of \['NK'\]"):
        load_job_cells(config, ("B cell", "NK"))


def test_merged_types_go_under_one_label(tmp_path):
    write_h5ad(tiny_cells(), tmp_path / "cells.h5ad")
    together = study("cell_types", merged={"lymphocyte": ("B cell", "T cell")})
    config = configure(together, "full", seed=0, data_dir=tmp_path)
    apart, merged = (load_job_cells(config, (), names) for names in ({}, together.merged))

    lymphocytes = np.isin(apart.cell_type, ["B cell", "T cell"])
    assert set(merged.cell_type[lymphocytes]) == {"lymphocyte"}
    np.testing.assert_array_equal(merged.cell_type[~lymphocytes], apart.cell_type[~lymphocytes])
    np.testing.assert_array_equal(merged.names, apart.names)
    for job in plan(together, merged, tmp_path):
        assert job_from_json(job_to_json(job)) == job
        assert replace(job, merged={}).key("digest") != job.key("digest")
    with pytest.raises(DataError, match=r"has no cells of \['NK'\]; see `only` and `merged`"):
        load_job_cells(config, (), {"lymphocyte": ("B cell", "NK")})


@pytest.mark.parametrize("num_types", [2, 3, 5])
def test_each_pair_is_in_exactly_one_third(num_types):
    sizes = {
        f"{kind}_{name}": 40
        for kind in "ABCDE"[:num_types]
        for name in ("control", "v", "w", "x", "y", "z")
    }
    jobs = list(plan(study("pairs"), world(**sizes), DATA))

    pairs = [pair for job in jobs for pair in job.conditions]
    expected = [(kind, name) for kind in "ABCDE"[:num_types] for name in "vwxyz"]
    assert sorted(pairs) == expected
    assert [job.fold for job in jobs] == ["third 1", "third 2", "third 3"]
    for job in jobs:
        assert job.config.split == SplitConfig(kind="unseen_pair", pairs=job.conditions)
        assert abs(len(job.conditions) - len(expected) / 3) <= 5 / 3


def test_no_third_holds_out_a_perturbation_everywhere():
    """x is shown by the first and the fourth type alone, which a plain count would put together."""
    cells = world(
        A_control=40, A_x=40, A_y=40, B_control=40, B_y=40, C_control=40, C_y=40, D_control=40,
        D_x=40, D_y=40,
    )  # fmt: skip

    for job in plan(study("pairs"), cells, DATA):
        split = make_split(
            job.config.split,
            perturbation=cells.perturbation,
            cell_type=cells.cell_type,
            control_name="control",
        )
        assert set(cells.perturbation[split.train]) == {"control", "x", "y"}


def test_lists_of_perturbations_are_held_out_in_every_type():
    chosen = ("raise", ("lower", "raise"))

    jobs = list(plan(study("perturbations", held_out=chosen), tiny_cells(), DATA))

    types = ("B cell", "T cell", "monocyte")
    assert held_out(jobs) == {
        "raise": tuple((name, "raise") for name in types),
        "lower, raise": tuple((name, of) for name in types for of in ("lower", "raise")),
    }
    splits = [job.config.split for job in jobs]
    assert splits == [
        SplitConfig(kind="unseen_perturbation", perturbations=names)
        for names in (("raise",), ("lower", "raise"))
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": "cell_types", "held_out": ("T cell", "T cel")}, r"folds \['T cel'\].*held_out"),
        ({"folds": "perturbations", "held_out": ("rais",)}, r"folds \['rais'\].*held_out"),
        ({"folds": "pairs", "min_cells": 41}, r"there is no fold; .* 41 control"),
    ],
)
def test_a_fold_with_nothing_to_score_is_named_before_any_training(changes, message):
    with pytest.raises(DataError, match=message):
        list(plan(study(**changes), tiny_cells(), DATA))


# Jobs.


def test_the_first_variant_comes_first_with_all_its_seeds():
    variants = {"full": {}, "wide": {"model": {"hidden_dim": 64}}}
    jobs = list(plan(study("pairs", variants=variants, seeds=(0, 7)), tiny_cells(), DATA))

    order = list(dict.fromkeys((job.variant, job.seed) for job in jobs))
    assert order == [("full", 0), ("full", 7), ("wide", 0), ("wide", 7)]
    for job in jobs:
        assert job.config.model.hidden_dim == (64 if job.variant == "wide" else None)
        assert job.config.training.seed == job.config.inference.seed == job.seed
        assert job.config.data.num_genes == 20
        assert job.config.data.train_data_path == "data/cells.h5ad"


def test_a_variant_changes_what_it_names_and_keeps_the_rest_of_the_section():
    changed = study("pairs", variants={"genes": {"data": {"exact_counts": 3}}})

    config = configure(changed, "genes", seed=0, data_dir=DATA)

    assert (config.data.exact_counts, config.data.num_genes) == (3, 20)


def test_cells_and_vectors_are_looked_for_in_the_folder_of_the_data():
    given = {"cond_labels_pt_path": "genes.pt", "celltype_labels_pt_path": "types.pt"}
    model = {"cell_type_label_dropout": 0.5}
    changed = study("pairs", config={"data": CONFIG["data"] | given, "model": model})

    named = configure(changed, "full", seed=0, data_dir=DATA).data
    unnamed = configure(study("pairs"), "full", seed=0, data_dir=DATA).data

    assert named.train_data_path == unnamed.train_data_path == "data/cells.h5ad"
    assert named.cond_labels_pt_path == "data/genes.pt"
    assert named.celltype_labels_pt_path == "data/types.pt"
    assert unnamed.cond_labels_pt_path is unnamed.celltype_labels_pt_path is None


def keys(digest: str = "digest", data_dir: Path = DATA, **changes) -> dict[tuple, str]:
    jobs = plan(study("cell_types", **changes), tiny_cells(), data_dir)
    return {(job.variant, job.fold, job.seed): job.key(digest) for job in jobs}


def test_the_key_of_a_job_changes_with_all_that_fixes_its_cells():
    jobs = list(plan(study("cell_types", seeds=(0, 1)), tiny_cells(), DATA))
    first = jobs[0]
    config = replace(first.config, inference=replace(first.config.inference, num_steps=3))
    others = [
        replace(first, config=config),
        replace(first, conditions=first.conditions[:1]),
        replace(first, cells_per_condition=7),
        replace(first, only=("B cell",)),
    ]

    found = [job.key("digest") for job in [*jobs, *others]] + [first.key("other data")]

    assert len(set(found)) == len(found) == 6 + 4 + 1


def test_the_key_of_a_job_does_not_depend_on_its_place_in_the_study_or_of_the_data():
    alone = keys()
    variants = {"wide": {"model": {"hidden_dim": 64}}, "full": {}}

    beside = keys(seeds=(3, 0), variants=variants, held_out=("monocyte", "T cell", "B cell"))

    assert {job: beside[job] for job in alone} == alone
    assert keys(data_dir=Path("elsewhere")) == alone
    assert len(set(beside.values())) == 12


def test_the_key_of_a_job_changes_with_what_the_vectors_say(tmp_path):
    config = {"data": CONFIG["data"] | {"cond_labels_pt_path": "vectors.pt"}}
    found = []
    for name, content in (("a", b"one"), ("a", b"other"), ("b", b"one")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "vectors.pt").write_bytes(content)
        found.append(keys(config=config, data_dir=tmp_path / name))

    assert found[0] == found[2] != found[1]


def test_other_sources_make_other_keys(monkeypatch):
    before = keys()

    monkeypatch.setattr("benchmarks.quality_study.source_digest", lambda: "changed")

    assert not set(before.values()) & set(keys().values())


@pytest.mark.parametrize("folds", ["cell_types", "pairs"])
def test_a_job_survives_json(folds):
    for job in plan(study(folds, seeds=(4,)), tiny_cells(), DATA):
        again = job_from_json(job_to_json(job))

        assert again == job
        assert again.key("digest") == job.key("digest")


@pytest.mark.parametrize("path", sorted(quality.ROOT.glob("benchmarks/configs/quality*.yaml")))
def test_every_study_that_is_kept_can_be_read_and_configured(path):
    found = read_study(path)
    require_targets(found)

    assert path.stem.replace("_", "-") == found.name
    for variant in found.variants:
        configure(found, variant, seed=found.seeds[0], data_dir=DATA)
    command = f"python -m benchmarks.quality benchmarks/configs/{path.name} --data_dir DATA"
    assert path.read_text(encoding="utf-8").startswith(f"# {command}\n")


def test_a_wrong_word_in_a_study_is_named(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: x\nquestion: y\nfolds: types\nconfig: {}\nvariants: {}\nsead: 1\n")

    with pytest.raises(ConfigError, match=re.compile(r"study\.yaml.*folds.*sead", re.DOTALL)):
        read_study(path)


@pytest.mark.parametrize("nothing", ["seeds: []", "variants: {}"])
def test_a_study_without_anything_to_run_is_refused(tmp_path, nothing):
    path = tmp_path / "study.yaml"
    lines = {"seeds": "seeds: [0]", "variants": "variants: {full: {}}"}
    lines[nothing.split(":")[0]] = nothing
    path.write_text("name: x\nquestion: y\nfolds: pairs\nconfig: {}\n" + "\n".join(lines.values()))

    with pytest.raises(ConfigError, match="Study 'x' has no seeds or no variants"):
        read_study(path)


# From end to end.


def kept_files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Content and time of writing of every file but the ledgers of MLflow runs."""
    found = (path for path in folder.rglob("*") if path.is_file())
    files = sorted(path for path in found if not path.name.startswith("tracking"))
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_study_is_run_once_and_goes_on_where_it_was_cut_off(run_study, tmp_path, capsys):
    assert run_study("--max_minutes", 0) == 1
    assert "nothing is scored yet" in capsys.readouterr().out

    assert run_study() == 0

    first = capsys.readouterr().out
    assert "2 jobs, 0 done before" in first
    folders = sorted((tmp_path / "work" / "tiny").iterdir())
    assert [re.sub("-[0-9a-f]{16}$", "", f.name) for f in folders] == [
        "full-B_cell-0",
        "full-T_cell-0",
    ]
    (page,) = (tmp_path / "benchmarks" / "results").iterdir()
    assert page.name.endswith("-tiny.md")
    assert "B cell × raise" in page.read_text(encoding="utf-8")
    scores = json.loads((folders[0] / "scores.json").read_text())["records"]
    assert [record["method"] for record in scores] == [
        "counterfactual", "population", "no_change", "mean_of_others", "additive", "ridge",
        "token_tilt", "split_half_ceiling",
    ]  # fmt: skip
    assert {record["num_real"] for record in scores} == {40}

    before = kept_files(tmp_path / "work")
    assert run_study() == 0
    assert "2 jobs, 2 done before" in capsys.readouterr().out
    assert kept_files(tmp_path / "work") == before

    lost = folders[0] / "scores.json"
    lost.unlink()
    assert run_study() == 0
    assert "2 jobs, 1 done before" in capsys.readouterr().out
    after = kept_files(tmp_path / "work")
    assert after[lost][1] == before[lost][1]
    assert {path: after[path] for path in after if path != lost} == {
        path: before[path] for path in before if path != lost
    }


def test_variants_of_the_inference_alone_share_a_trained_model(run_study, tmp_path):
    more = "  full: {}\n  short: {inference: {num_steps: 1}}\n  small: {model: {num_heads: 1}}\n"
    study_file = tmp_path / "study.yaml"
    text = study_file.read_text().replace("  full: {}\n", more)
    study_file.write_text(text + "held_out: [B cell]\n")

    assert run_study() == 0

    facts = {
        path.parent.name.split("-")[0]: json.loads(path.read_text())
        for path in (tmp_path / "work" / "tiny").glob("*/facts.json")
    }
    assert facts["full"]["trained_model"] == facts["short"]["trained_model"]
    assert facts["full"]["trained_model"] != facts["small"]["trained_model"]
    assert len(list((tmp_path / "work" / "trained").iterdir())) == 2
    cells = {
        path.parent.name.split("-")[0]: path.read_bytes()
        for path in (tmp_path / "work" / "tiny").glob("*/population.npz")
    }
    assert cells["full"] != cells["short"]


def test_predictions_are_of_their_condition_and_as_many_as_there_are_training_controls(predicted):
    cells = tiny_cells()
    split = make_split(
        SplitConfig(kind="unseen_cell_type", cell_types=("B cell",)),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )
    train = split.train[cells.cell_type[split.train] == "B cell"]
    means = {}

    for mode in quality_job.MODES:
        found = quality_job.read_predicted(predicted, mode, "counts")
        assert list(found) == [("B cell", "lower"), ("B cell", "raise")]
        for condition, made in found.items():
            np.testing.assert_array_equal(np.sort(made.control_row), train)
            np.testing.assert_array_equal(made.depth, cells.depth[made.control_row])
            dense = made.values.toarray()
            expected = np.log1p(dense / made.depth[:, None] * 1e4)
            np.testing.assert_allclose(made.log1p, expected, rtol=1e-5)
            means[mode, condition[1]] = dense.mean(0)

    genes = json.loads((predicted / "facts.json").read_text())["genes"]
    lowered = [genes.index(gene) for gene in genes if "GENE010" <= gene <= "GENE019"]
    for mode in quality_job.MODES:
        change = (means[mode, "lower"] - means[mode, "raise"])[lowered]
        assert change.mean() < -1


def test_predictions_of_another_split_are_not_scored(predicted):
    facts = json.loads((predicted / "facts.json").read_text())
    (predicted / "facts.json").write_text(json.dumps(facts | {"split_digest": "another"}))

    with pytest.raises(ValueError, match="predicted with another split"):
        quality.score_job(predicted, baselines=False)

    assert not (predicted / "scores.json").exists()


def test_baselines_are_scored_once_per_fold_and_perturbations_told_apart(predicted):
    quality.score_job(predicted, baselines=False)

    content = json.loads((predicted / "scores.json").read_text())

    assert [record["method"] for record in content["records"]] == [*quality_job.MODES] * 2
    assert [record["method"] for record in content["separation"]] == [*quality_job.MODES]
    assert {record["num_candidates"] for record in content["separation"]} == {2}
