"""The simulation against its own closed form, its table against the cells it was measured on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure_pbmc_parameters import measure
from sedd.data.cells import read_cells, write_h5ad
from sedd.data.simulate import simulate
from sedd.data.truth import Truth
from sedd.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
MONOCYTE, T_CELL = "CD14+ Monocytes", "CD4 T cells"


@pytest.fixture(scope="module")
def truth() -> Truth:
    return simulate(num_cells=14, num_genes=600, num_cell_types=7).truth


def of_one_size(truth: Truth, num_genes: int) -> Truth:
    """The same world with few genes and all cells of a type of one size."""
    world = truth.parameters
    return Truth(
        replace(
            world,
            genes=world.genes[:num_genes],
            log_depth=world.log_depth * [1.0, 0.0],
            log_fraction=world.log_fraction[:, :num_genes],
            dispersion=world.dispersion[:, :num_genes],
            loadings=world.loadings[:num_genes],
            shared=world.shared[:, :num_genes],
            specific=world.specific[:, :, :num_genes],
        )
    )


def test_equal_arguments_give_equal_bytes_and_another_seed_gives_others():
    arguments = {"num_cells": 90, "num_genes": 620, "num_cell_types": 8, "num_perturbations": 3}

    first, again, other = (simulate(seed=seed, **arguments).cells for seed in (3, 3, 4))

    assert first.source.digest == again.source.digest != other.source.digest
    for name in ("data", "indices", "indptr"):
        stored = [getattr(cells.expression, name).tobytes() for cells in (first, again, other)]
        assert stored[0] == stored[1] != stored[2]
    assert first.cell_type.tolist() == again.cell_type.tolist()
    assert first.perturbation.tolist() == again.perturbation.tolist()


@pytest.mark.parametrize(
    ("num_cells", "num_genes", "num_cell_types", "num_perturbations"),
    [(4, 30, 2, 1), (333, 599, 7, 1), (500, 700, 9, 5), (77, 1, 1, 20)],
)
def test_sizes_are_honoured(num_cells, num_genes, num_cell_types, num_perturbations):
    simulation = simulate(
        num_cells=num_cells,
        num_genes=num_genes,
        num_cell_types=num_cell_types,
        num_perturbations=num_perturbations,
    )

    cells, world = simulation.cells, simulation.truth.parameters
    assert cells.expression.shape == (num_cells, num_genes)
    assert cells.expression.dtype == np.int32
    assert len(set(cells.genes)) == num_genes
    assert len(set(world.cell_types)) == num_cell_types
    assert world.perturbations[:2] == ("control", "IFNb")
    assert len(set(world.perturbations)) == num_perturbations + 1
    conditions = set(zip(cells.cell_type, cells.perturbation, strict=True))
    assert conditions == {(t, p) for t in world.cell_types for p in world.perturbations}


def test_shares_of_types_are_the_measured_ones_and_half_the_cells_are_controls():
    cells = simulate(num_cells=10_000, num_genes=2).cells

    shares = {name: np.mean(cells.cell_type == name) for name in set(cells.cell_type)}
    # 0.397 of 4448 real cells are CD4 T cells, 0.050 are of the two types left out here.
    assert shares[T_CELL] == pytest.approx(0.397 / 0.972, abs=2e-3)
    assert np.mean(cells.perturbation == "control") == pytest.approx(0.5, abs=1e-3)


def test_genes_are_real_ones_until_the_table_ends():
    genes = simulate(num_cells=2, num_genes=602, num_cell_types=1).cells.genes

    assert {"ISG15", "LYZ", "CD3D", "HLA-DRA", "GNLY", "CXCL10", "ACTB"} <= set(genes)
    assert not any(gene.startswith("SIM") for gene in genes[:600])
    assert genes[600:] == ("SIM00001", "SIM00002")


def test_a_larger_world_begins_with_the_smaller_one():
    small = simulate(num_cells=100, num_genes=620, num_cell_types=8).truth.parameters
    large = simulate(num_cells=100, num_genes=700, num_cell_types=9).truth.parameters

    assert large.genes[:620] == small.genes
    assert large.cell_types[:8] == small.cell_types
    np.testing.assert_array_equal(large.log_fraction[:8, :620], small.log_fraction)
    np.testing.assert_array_equal(large.specific[:8, :, :620], small.specific)


def test_with_measured_sizes_the_truth_does_not_depend_on_the_seed():
    first, second = (simulate(seed=seed, num_cells=20).truth for seed in (0, 1))

    np.testing.assert_array_equal(first.expected_counts, second.expected_counts)


@pytest.mark.parametrize(("cell_type", "perturbation"), [(MONOCYTE, "IFNb"), (T_CELL, "control")])
def test_the_mean_of_many_cells_is_the_true_mean(truth, cell_type, perturbation):
    num_cells = 4000
    cells = truth.draw(cell_type, perturbation, num_cells, seed=5)

    t, p = truth._condition(cell_type, perturbation)
    mean = truth.expected_counts[t, p]
    size_variance = np.expm1(truth.parameters.log_depth[t, 1] ** 2)
    rates = np.diag(truth.relative_covariance(cell_type, perturbation))
    variance = mean + mean**2 * ((1 + size_variance) * (1 + rates) - 1)
    z = (cells.expression.mean(axis=0) - mean) / np.sqrt(variance / num_cells)
    # Lognormal programs have skewed tails and genes share sizes and programs: over 60 other seeds
    # the largest |z| was 5.0, the largest |median| 0.9 and the spread 0.86 to 1.11.
    assert np.abs(z).max() < 6
    assert abs(np.median(z)) < 1.5
    assert 0.75 < z.std() < 1.25


def test_variance_is_counting_noise_plus_dispersion_plus_programs(truth):
    one_size = of_one_size(truth, 150)
    num_cells = 40_000
    counts = one_size.draw(MONOCYTE, "IFNb", num_cells, seed=1).expression.toarray()

    t, p = one_size._condition(MONOCYTE, "IFNb")
    mean = one_size.expected_counts[t, p]
    excess = np.diag(one_size.relative_covariance(MONOCYTE, "IFNb"))
    ratio = counts.var(axis=0) / (mean + mean**2 * excess)
    # A sample variance of kurtosis k has relative error sqrt((k - 1) / n): 1.6 % at k = 10.
    light = excess < 1
    assert light.sum() > 100
    assert np.median(ratio[light]) == pytest.approx(1, abs=0.005)
    assert np.abs(ratio[light] - 1).max() < 0.1


def test_programs_and_uneven_response_correlate_genes_as_stated(truth):
    one_size = of_one_size(truth, 120)
    num_cells = 40_000
    counts = one_size.draw(T_CELL, "IFNb", num_cells, seed=2).expression.toarray()

    t, p = one_size._condition(T_CELL, "IFNb")
    mean = one_size.expected_counts[t, p]
    stated = np.outer(mean, mean) * one_size.relative_covariance(T_CELL, "IFNb")
    deviation = np.sqrt(mean + np.diag(stated))
    pairs = np.triu_indices(len(mean), 1)
    stated = (stated / np.outer(deviation, deviation))[pairs]
    found = np.corrcoef(counts.T)[pairs]
    # 1 / sqrt(40,000) = 0.005 each if counts were normal, the tails allow twice that.
    assert np.abs(stated).max() > 0.3
    assert np.polyfit(stated, found, 1)[0] == pytest.approx(1, abs=0.03)
    assert np.sqrt(np.mean((found - stated) ** 2)) < 0.01


def test_some_cells_do_not_respond():
    truth = simulate(num_cells=2, num_cell_types=1).truth
    truth = Truth(replace(truth.parameters, responding=np.array([0.7]), spread=np.array([0.0])))

    counts = truth.draw(T_CELL, "IFNb", 3000, seed=0).select(genes=["ISG15", "ISG20", "IFI6"])
    silent = np.mean(counts.expression.sum(axis=1) <= 3)

    # A responder expects about 24 counts of the three genes, a cell that does not respond 1.
    assert silent == pytest.approx(0.3, abs=0.05)


def test_untouched_genes_have_no_true_effect_in_any_type(truth):
    world = truth.parameters
    untouched = ~world.effect.any(axis=(0, 1))

    assert 200 < untouched.sum() < 400
    assert (world.shared[:, untouched] == 0).all()
    assert (world.specific[:, :, untouched] == 0).all()
    assert (truth.log_fold_change[:, :, untouched] == 0).all()
    assert (truth.log_fold_change[:, 0] == 0).all()
    assert np.abs(truth.log_fold_change[:, 1, ~untouched]).max(axis=0).min() > 0
    assert truth.log_fold_change[:, 1, world.genes.index("ISG15")].min() > 2


def test_in_fractions_untouched_genes_lose_one_common_factor(truth):
    untouched = ~truth.parameters.effect.any(axis=(0, 1))
    change = np.log(truth.mean_fraction[:, 1] / truth.mean_fraction[:, 0])[:, untouched]

    np.testing.assert_allclose(truth.mean_fraction.sum(axis=-1), 1)
    np.testing.assert_allclose(change, change[:, :1] * np.ones(untouched.sum()), rtol=1e-9)
    assert (change > -0.5).all()
    assert (change < 0).all()


def test_the_reads_of_a_cell_do_not_depend_on_the_perturbation(truth):
    world = truth.parameters
    simulated = truth.expected_counts.sum(axis=-1)
    size = np.exp(world.log_depth[:, 0] + world.log_depth[:, 1] ** 2 / 2)
    elsewhere = size * (1 - np.exp(world.log_fraction).sum(axis=1))

    reads = simulated + elsewhere[:, None] * np.exp(truth.log_compensation)

    np.testing.assert_allclose(reads, size[:, None] * np.ones(2))


def test_the_type_dependent_part_is_a_minor_one_and_can_be_dialled():
    measured, none, double = (
        simulate(num_cells=14, num_cell_types=7, type_dependence=factor).truth.parameters
        for factor in (1.0, 0.0, 2.0)
    )

    share = measured.specific[:, 1].var() / measured.effect[:, 1].var()
    assert 0.03 < share < 0.15
    assert (none.effect == none.shared).all()
    np.testing.assert_array_equal(double.specific, 2 * measured.specific)
    np.testing.assert_array_equal(double.shared, measured.shared)


def test_without_effect_the_perturbed_cells_follow_the_law_of_controls():
    truth = simulate(num_cells=20, effect_size=0.0).truth

    np.testing.assert_array_equal(truth.expected_counts[:, 0], truth.expected_counts[:, 1])
    np.testing.assert_array_equal(
        truth.relative_covariance(MONOCYTE, "control"), truth.relative_covariance(MONOCYTE, "IFNb")
    )


def test_every_fourth_perturbation_does_nothing_and_the_others_differ():
    truth = simulate(num_cells=100, num_perturbations=9, num_cell_types=7).truth

    assert truth.null_perturbations == ("sim_004", "sim_008")
    strength = truth.log_fold_change.std(axis=(0, 2))
    works = [1, 2, 3, 5, 6, 7, 9]
    assert strength[works].min() > 0.2 * strength[1]
    assert strength[works].max() < 1.5 * strength[1]
    alike = np.corrcoef(truth.parameters.shared[works]) - np.eye(len(works))
    assert np.abs(alike).max() < 0.6


def test_new_types_and_genes_look_like_measured_ones():
    world = simulate(num_cells=100, num_genes=3000, num_cell_types=20).truth.parameters

    fraction = np.exp(world.log_fraction)
    # The measured 600 genes hold about 0.6 of all counts, the 8415 others the rest.
    assert 0.45 < fraction[:7, :600].sum(axis=1).min() < fraction[:7, :600].sum(axis=1).max() < 0.85
    assert 0.03 < np.median(fraction[:, 600:].sum(axis=1)) < 0.25
    touched = (world.shared[1, 600:] != 0).mean()
    assert 0.08 < touched < 0.25
    deviation = world.log_fraction - world.log_fraction.mean(axis=0)
    assert 0.5 < deviation[7:, :600].std() / deviation[:7, :600].std() < 1.1


def test_few_genes_leave_no_cell_empty():
    cells = simulate(num_cells=3000, num_genes=3, num_cell_types=7, num_perturbations=2).cells

    assert cells.depth.min() > 0


def test_the_mean_of_log1p_agrees_with_cells_drawn_apart(truth):
    expected = truth.mean_log1p_cp10k(MONOCYTE, "IFNb", num_cells=3000)
    drawn = truth.draw(MONOCYTE, "IFNb", 3000, seed=9).log1p_cp10k()

    z = (drawn.mean(axis=0) - expected.mean_log1p) / (np.sqrt(2) * expected.standard_error)
    assert np.abs(z[np.isfinite(z)]).max() < 4.5
    assert 0.7 < z[np.isfinite(z)].std() < 1.3


def test_drawn_cells_differ_by_seed_and_repeat_by_it(truth):
    first, again, other = (truth.draw(T_CELL, "control", 20, seed) for seed in (0, 0, 1))

    assert first.source.digest == again.source.digest != other.source.digest
    assert set(first.cell_type) == {T_CELL}
    assert set(first.perturbation) == {"control"}


def test_simulated_cells_come_back_from_an_h5ad_unchanged(tmp_path):
    cells = simulate(num_cells=60, num_genes=40).cells

    write_h5ad(cells, tmp_path / "cells.h5ad")
    again = read_cells(
        tmp_path / "cells.h5ad",
        perturbation_col="perturbation",
        cell_type_col="cell_type",
        control_name="control",
    )

    assert again.source.digest == cells.source.digest
    np.testing.assert_array_equal(again.depth, cells.depth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_cells": 11}, "num_cells=11 is too few .* Ask for 12 or more"),
        ({"num_genes": 0}, "at least 1 gene, .* num_genes=0"),
        ({"seed": -1}, "seed=-1 is negative"),
    ],
)
def test_impossible_sizes_are_refused_with_the_possible_ones(arguments, message):
    with pytest.raises(UsageError, match=message):
        simulate(**arguments)


def test_a_condition_that_was_not_simulated_is_refused_by_name(truth):
    with pytest.raises(UsageError, match=r"No cell type 'T cell' was simulated.*CD4 T cells"):
        truth.draw("T cell", "IFNb", 5, seed=0)
    with pytest.raises(UsageError, match=r"No perturbation 'IFNg' was simulated.*control, IFNb"):
        truth.mean_log1p_cp10k(T_CELL, "IFNg")
    with pytest.raises(UsageError, match="Cannot draw 0 cells"):
        truth.draw(T_CELL, "IFNb", 0, seed=0)


@pytest.mark.real_cells
def test_the_shipped_table_is_what_its_script_measures(real_cells_folder):
    import anndata

    measured = measure(anndata.read_h5ad(real_cells_folder / "kang_pbmc.h5ad"))

    shipped = json.loads((ROOT / "sedd" / "data" / "pbmc_parameters.json").read_text())
    assert list(measured["genes"]) == list(shipped["genes"])
    for name, row in shipped["genes"].items():
        for key, values in row.items():
            np.testing.assert_allclose(measured["genes"][name][key], values, atol=0.05)
    for name, row in shipped["cell_types"].items():
        for key, values in row.items():
            np.testing.assert_allclose(measured["cell_types"][name][key], values, atol=0.01)


@pytest.mark.real_cells
def test_simulated_cells_resemble_the_real_ones(real_cells_folder, truth):
    real = read_cells(
        real_cells_folder / "kang_pbmc.h5ad",
        perturbation_col="perturbation",
        cell_type_col="cell_type",
        control_name="control",
    ).select(genes=truth.parameters.genes)
    types = truth.parameters.cell_types[:6]

    shifts = {"real": [], "simulated": []}
    for cell_type in types:
        means = {"real": [], "simulated": []}
        for perturbation in ("control", "IFNb"):
            rows = (real.cell_type == cell_type) & (real.perturbation == perturbation)
            pair = {
                "real": real.select(rows=rows).expression.toarray(),
                "simulated": truth.draw(
                    cell_type, perturbation, int(rows.sum()), seed=0
                ).expression.toarray(),
            }
            zeros = [np.mean(counts == 0) for counts in pair.values()]
            assert zeros[1] == pytest.approx(zeros[0], abs=0.03)
            depths = [np.median(counts.sum(axis=1)) for counts in pair.values()]
            assert depths[1] == pytest.approx(depths[0], rel=0.2)
            for name, counts in pair.items():
                depth = counts.sum(axis=1, keepdims=True)
                means[name].append(np.log1p(counts / depth * 1e4).mean(axis=0))
        for name, (control, perturbed) in means.items():
            shifts[name].append(perturbed - control)

    additive = {name: additive_pearsons(np.array(rows)) for name, rows in shifts.items()}
    np.testing.assert_allclose(additive["simulated"], additive["real"], atol=0.04)
    agreement = [
        np.corrcoef(a, b)[0, 1] for a, b in zip(shifts["real"], shifts["simulated"], strict=True)
    ]
    # The halves of the 159 real CD8 T cells and 117 NK cells agree no better than 0.85.
    assert min(agreement) > 0.85
    assert np.median(agreement) > 0.95


def additive_pearsons(shifts: np.ndarray) -> list[float]:
    """Per type, Pearson of its shift with the mean shift of the other types."""
    total = shifts.sum(axis=0)
    others = (total - shifts) / (len(shifts) - 1)
    return [np.corrcoef(own, mean)[0, 1] for own, mean in zip(shifts, others, strict=True)]
