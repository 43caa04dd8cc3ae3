"""What the judges are given, and, with the real packages, what they say."""

import importlib.metadata
from dataclasses import replace

import anndata
import numpy as np
import pytest

from sedd.errors import DataError, UsageError
from sedd.evaluation import judges
from sedd.evaluation.judges import (
    ALL,
    CELL_EVAL,
    CELL_EVAL2,
    JUDGES,
    OTHER_GENES,
    LabelledCounts,
    Question,
    judge,
    require_judges,
    rounded_counts,
    write_question,
)
from sedd.evaluation.metrics import pearson_of_shift

GENES = tuple(f"GENE{number:03d}" for number in range(60))
SILENT = "nothing"
EFFECTS = ("first", "second", "third")


def poisson_cells(label: str, *, num_cells: int = 60, seed: int = 0) -> LabelledCounts:
    """Mean 4 everywhere; each of EFFECTS raises its own 12 genes to 12 and halves 6 others.

    Every library has 1000 counts, so that no gene falls because others rise.
    """
    means = np.full(60, 4.0)
    if label in EFFECTS:
        start = 18 * EFFECTS.index(label)
        means[start : start + 12] = 12.0
        means[start + 12 : start + 18] = 2.0
    counts = np.random.default_rng([seed, *label.encode()]).poisson(means, (num_cells, 60))
    labels = np.full(num_cells, label, dtype=object)
    return LabelledCounts(counts.astype(np.int32), labels, np.full(num_cells, 1000.0))


def together(*parts: LabelledCounts) -> LabelledCounts:
    return LabelledCounts(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("counts", "perturbation", "depth")
        )
    )


def question(labels=EFFECTS, *, predicted=None, real=None) -> Question:
    """Real cells predicted by fresh cells of the same law, unless something else is given."""
    return Question(
        GENES,
        "control",
        predicted or together(*(poisson_cells(label, seed=1) for label in labels)),
        real or together(*(poisson_cells(label, seed=2) for label in labels)),
        poisson_cells("control"),
    )


def no_change(labels=EFFECTS) -> LabelledCounts:
    control = poisson_cells("control")
    return together(*(replace(control, perturbation=np.full(60, x, dtype=object)) for x in labels))


# Counts for methods that predict none


def test_whole_counts_survive_the_way_through_float32_log1p():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3000, (200, 50)).astype(np.int32)
    depth = rng.integers(500, 60000, 200).astype(np.float64)
    log1p = np.log1p(counts / depth[:, None] * 1e4).astype(np.float32)

    np.testing.assert_array_equal(rounded_counts(log1p, depth), counts)


def test_rounding_keeps_the_mean_of_the_logarithm_and_only_takes_the_two_nearest_counts():
    """40,000 draws of each value; the mean of log1p must agree within 4 standard errors."""
    log1p = np.float32([0.1, 0.7, 1.9, 3.0, 5.0])
    cells = np.tile(log1p, (40000, 1))
    depth = np.full(40000, 2500.0)

    counts = rounded_counts(cells, depth, seed=3)

    wanted = np.expm1(log1p.astype(float)) * 0.25
    assert set(np.unique(counts - np.floor(wanted))) == {0, 1}
    again = np.log1p(counts * 4.0)
    error = again.std(0) / 200
    assert np.all(np.abs(again.mean(0) - log1p) < 4 * error)
    assert counts[:, 0].mean() > 1.5 * wanted[0]  # the mean count is not what is kept


def test_rounding_is_repeated_by_its_seed():
    log1p, depth = np.full((30, 9), 0.8, dtype=np.float32), np.full(30, 3000.0)

    first, same, other = (rounded_counts(log1p, depth, seed=seed) for seed in (1, 1, 2))

    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_negative_expression_cannot_be_rounded():
    with pytest.raises(DataError, match="Clip the prediction at 0"):
        rounded_counts(np.float32([[0.5, -0.1]]), np.array([1000.0]))


# The files


@pytest.mark.parametrize("name", JUDGES)
def test_both_files_hold_the_same_controls_genes_and_labels(tmp_path, name):
    asked = question()

    prediction, truth = map(anndata.read_h5ad, write_question(name, asked, tmp_path / "new"))

    assert list(prediction.var_names) == list(truth.var_names)
    assert set(prediction.obs["perturbation"]) == set(truth.obs["perturbation"])
    control = [side[side.obs["perturbation"] == "control"].X for side in (prediction, truth)]
    assert control[0].shape[0] == 60
    assert (control[0] != control[1]).nnz == 0
    first = truth.obs["perturbation"].to_numpy() == "second"
    assert (prediction[first].X != truth[first].X).nnz > 0


def test_cell_eval_gets_log1p_of_the_whole_library(tmp_path):
    asked = question()

    _, truth = write_question(CELL_EVAL, asked, tmp_path)

    found = anndata.read_h5ad(truth)[60:].X.toarray()
    expected = np.log1p(asked.real.counts / asked.real.depth[:, None] * 1e4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_cell_eval2_gets_whole_counts_that_add_up_to_the_library(tmp_path):
    asked = question()

    prediction, _ = write_question(CELL_EVAL2, asked, tmp_path)

    cells = anndata.read_h5ad(prediction)[60:]
    assert list(cells.var_names) == [*GENES, OTHER_GENES]
    np.testing.assert_array_equal(cells.X[:, :60].toarray(), asked.predicted.counts)
    np.testing.assert_array_equal(np.asarray(cells.X.sum(1)).ravel(), asked.predicted.depth)


def test_a_panel_that_is_the_whole_library_gets_no_other_genes(tmp_path):
    asked = question()
    sides = {
        side: replace(getattr(asked, side), depth=getattr(asked, side).counts.sum(1) * 1.0)
        for side in ("predicted", "real", "control")
    }

    prediction, _ = write_question(CELL_EVAL2, replace(asked, **sides), tmp_path)

    assert list(anndata.read_h5ad(prediction).var_names) == list(GENES)


# Questions that cannot be asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda q: replace(q, predicted=poisson_cells("first")),
            r"only real \['second', 'third'\]",
        ),
        (lambda q: replace(q, genes=(*GENES[:-1], "GENE000")), "60 names, 59 of them different"),
        (lambda q: replace(q, genes=GENES[:-1]), "have 60 genes, the panel 59"),
        (lambda q: replace(q, control_name="first"), "has to be the label of all control"),
        (
            lambda q: replace(q, real=together(q.real, poisson_cells("fourth", num_cells=1))),
            r"Too few real cells of \['fourth'\]",
        ),
        (
            lambda q: replace(q, predicted=replace(q.predicted, counts=-q.predicted.counts)),
            "predicted cells have a negative count",
        ),
        (
            lambda q: replace(q, control=replace(q.control, depth=np.zeros(60))),
            "control cells .* library size of 0",
        ),
    ],
)
def test_what_no_judge_could_compare_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        change(question())


def test_a_judge_that_is_not_installed_is_a_usage_error(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(judges.importlib.metadata, "version", missing)

    with pytest.raises(UsageError, match=r"cell-eval2 is not installed.*pip install '\.\[eval\]'"):
        require_judges([CELL_EVAL2])


def test_a_judge_of_another_series_is_refused(monkeypatch):
    monkeypatch.setattr(judges.importlib.metadata, "version", lambda _: "0.9.1")

    with pytest.raises(UsageError, match=r"cell-eval is installed as 0\.9\.1; 0\.8\.x is wanted"):
        require_judges([CELL_EVAL])


def test_an_unknown_judge_is_refused():
    with pytest.raises(UsageError, match=r"no judge 'pertbench'.*cell-eval, cell-eval2"):
        require_judges(["pertbench"])


# The real packages


@pytest.fixture
def installed() -> None:
    """Slow tests alone ask the real judges; `make test-slow` installs them."""
    require_judges(JUDGES)


def reasons(verdict, perturbation=ALL):
    return {out.metric: out.reason for out in verdict.left_out if out.perturbation == perturbation}


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_cell_eval_tells_cells_of_the_same_law_from_no_change(tmp_path, capfd):
    asked = question()

    good = judge(CELL_EVAL, asked, tmp_path)
    none = judge(CELL_EVAL, replace(asked, predicted=no_change()), tmp_path)

    assert good.version == importlib.metadata.version("cell-eval")
    assert good.aggregated["pearson_delta"] > 0.95
    assert good.aggregated["discrimination_score_l1"] == 1
    assert good.aggregated["overlap_at_N"] > 0.9
    assert none.aggregated["overlap_at_N"] == 0
    assert none.aggregated["roc_auc"] == 0.5
    assert none.aggregated["mse"] > 20 * good.aggregated["mse"]
    assert "no number" in reasons(none)["pearson_delta"]
    assert "needs 17 perturbations, here 3" in reasons(good)["clustering_agreement"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_cell_eval_and_our_own_pearson_agree(tmp_path):
    asked = question()

    verdict = judge(CELL_EVAL, asked, tmp_path)

    def mean(cells, label):
        rows = cells.perturbation == label
        return np.log1p(cells.counts[rows] / cells.depth[rows, None] * 1e4).mean(0)

    control = mean(asked.control, "control")
    ours = {
        label: pearson_of_shift(mean(asked.predicted, label), mean(asked.real, label), control)
        for label in EFFECTS
    }
    assert verdict.per_perturbation["pearson_delta"] == pytest.approx(ours, abs=1e-5)
    assert verdict.aggregated["pearson_delta"] == pytest.approx(np.mean([*ours.values()]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", JUDGES)
def test_with_one_perturbation_no_metric_over_perturbations_is_reported(tmp_path, name):
    verdict = judge(name, question(("first",)), tmp_path)

    expected = {
        CELL_EVAL: {
            "discrimination_score_l1",
            "discrimination_score_l2",
            "discrimination_score_cosine",
            "pearson_edistance",
            "de_spearman_sig",
            "clustering_agreement",
        },
        CELL_EVAL2: {"pds_cosine"},
    }[name]
    assert expected <= reasons(verdict).keys()
    assert not expected & (verdict.aggregated.keys() | verdict.per_perturbation.keys())
    assert all(np.isfinite(value) for value in verdict.aggregated.values())
    assert all(row.keys() == {"first"} for row in verdict.per_perturbation.values())


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_perturbation_that_does_nothing_has_no_scores_of_significant_genes(tmp_path):
    verdict = judge(CELL_EVAL, question((*EFFECTS, SILENT)), tmp_path)

    assert verdict.per_perturbation["de_nsig_counts_real"][SILENT] == 0
    assert verdict.per_perturbation["overlap_at_N"].keys() == set(EFFECTS)
    assert "fewer than 1 significant gene" in reasons(verdict, SILENT)["overlap_at_N"]
    assert "fewer than 50 significant genes" in reasons(verdict)["overlap_at_50"]


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_cell_eval2_tells_cells_of_the_same_law_from_no_change(tmp_path, capfd):
    asked = question()

    good = judge(CELL_EVAL2, asked, tmp_path).aggregated
    none = judge(CELL_EVAL2, replace(asked, predicted=no_change()), tmp_path).aggregated

    assert good["pds_cosine"] == 1
    assert none["pds_cosine"] == 0.5  # equidistant from all
    assert good["expr_mse_unbiased_capped_norm"] < 0.1
    assert none["expr_mse_unbiased_capped_norm"] == pytest.approx(1, abs=0.1)
    assert good["de_wilcoxon_sig_jaccard"] > 0.8
    assert none["de_wilcoxon_sig_jaccard"] == 0
    assert good["de_wilcoxon_lfc_nmae"] < 0.3
    assert none["de_wilcoxon_lfc_nmae"] == pytest.approx(1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_cell_eval2_says_why_it_cannot_normalise_by_an_effect_that_is_not_there(tmp_path):
    verdict = judge(CELL_EVAL2, question((SILENT,), real=no_change((SILENT,))), tmp_path)

    assert "expr_mse_unbiased_capped_norm" not in verdict.aggregated
    assert "not positive" in reasons(verdict)["expr_mse_unbiased_capped_norm"]
