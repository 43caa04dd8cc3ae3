"""Measures the parameters of the built-in simulation on real blood cells and writes its table.

    python benchmarks/measure_pbmc_parameters.py kang_pbmc.h5ad sedd/data/pbmc_parameters.json

The cells are those of Kang et al. 2018 (GEO GSE96583): `obs` has `perturbation` (control, IFNb) and
`cell_type`, `X` raw counts of all genes. The table holds summary parameters only, no cell: for each
gene and type a level, a dispersion and a response, for each gene its loadings on a few programs,
for each type the depth and how strongly it shows each program. `sedd/data/simulate.py` states the
model these are parameters of.
"""

import argparse
import json
import sys
from pathlib import Path

import anndata
import numpy as np
from scipy import sparse

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pbmc_programs import (
    Group,
    Moments,
    covariance_weights,
    covariances,
    dispersions,
    fit_programs,
)

CELL_TYPES = (
    "CD4 T cells",
    "CD14+ Monocytes",
    "B cells",
    "CD8 T cells",
    "FCGR3A+ Monocytes",
    "NK cells",
    "Dendritic cells",
)
CONTROL, PERTURBATION = "control", "IFNb"
NUM_GENES = 600
PROBABILITIES = (*np.linspace(0, 0.95, 20).round(2).tolist(), 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)
"""Where the levels of the genes outside the table are noted; few of them are abundant."""
PRIOR_COUNTS = 2000.0
"""Counts of an average cell added to each type, so that a gene absent from 40 cells is rare, not
impossible."""


def main() -> None:
    """Reads the h5ad named on the command line and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="h5ad with raw counts of all genes")
    parser.add_argument("table", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    arguments.table.write_text(table_text(measure(anndata.read_h5ad(arguments.cells))))
    print(f"{arguments.table}: {arguments.table.stat().st_size / 1000:.0f} kB")


def measure(adata: anndata.AnnData) -> dict:
    """All parameters, as the JSON holds them."""
    counts = sparse.csr_matrix(adata.X)
    depth = np.asarray(counts.sum(1), dtype=np.float64).ravel()
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    stimulus = adata.obs["perturbation"].astype(str).to_numpy()

    def groups(condition: str) -> list[Group]:
        masks = [(labels == name) & (stimulus == condition) for name in CELL_TYPES]
        return [Group(counts[mask], depth[mask]) for mask in masks]

    control, treated = groups(CONTROL), groups(PERTURBATION)
    order = np.argsort(-variance_of_log1p(counts, depth), kind="stable")
    genes = order[:NUM_GENES]
    fraction = fractions(control)
    level = np.log(fraction)
    change, error = log_fold_changes(control, treated, fraction)
    touched = significant(change, error)
    change = shrunk(np.where(touched, change, 0.0), error)

    responding = share_responding(control, treated, change)
    moments = Moments(
        covariance=covariances(control, fraction, genes),
        weight=covariance_weights(control, fraction[:, genes]),
        num_cells=tuple(len(group.depth) for group in control),
    )
    after = np.array([group.totals / group.depth.sum() for group in treated]) + 1e-7
    after_moments = Moments(
        covariance=covariances(treated, after, genes),
        weight=covariance_weights(treated, after[:, genes]),
        num_cells=tuple(len(group.depth) for group in treated),
    )
    spread = response_spread(after_moments, change[:, genes])
    effect = responder_effect(change[:, genes], responding, spread)
    after_moments = without_response(after_moments, effect, responding, spread)
    loadings, scale = fit_programs(moments, after_moments)
    dispersion = dispersions(moments, after_moments, loadings, scale)
    shared = np.average(effect, axis=0, weights=np.sqrt(after_moments.num_cells))
    rest = order[NUM_GENES:]
    return {
        "provenance": (
            "Summary parameters of blood cells, Kang et al. 2018 (Nature Biotechnology 36, 89-94; "
            "counts: GEO GSE96583), measured by benchmarks/measure_pbmc_parameters.py"
        ),
        "cell_types": {
            name: {
                "share": round(float(np.mean(labels == name)), 4),
                "log_depth": round_to(log_depth(control[t]), 4),
                "responding": round(float(responding[t]), 3),
                "spread": round(float(spread[t]), 3),
                "program_scale": round_to(scale[t], 3),
            }
            for t, name in enumerate(CELL_TYPES)
        },
        "other_genes": {
            "probability": list(PROBABILITIES),
            "log_fraction": round_to(np.quantile(level[:, rest].mean(0), PROBABILITIES), 3),
            "type_deviation": round(type_deviation(control, fraction, rest), 3),
            "touched": round(float(touched[rest].mean()), 4),
        },
        "genes": {
            str(adata.var_names[gene]): {
                "log_fraction": round_to(level[:, gene], 2),
                "dispersion": round_to(dispersion[:, i], 2),
                "loadings": round_to(loadings[i], 2),
                "shared": round(float(shared[i]), 2),
                "specific": round_to(effect[:, i] - shared[i], 2),
            }
            for i, gene in enumerate(genes)
        },
    }


def variance_of_log1p(counts: sparse.csr_matrix, depth: np.ndarray) -> np.ndarray:
    logged = sparse.csr_matrix(counts.multiply(1e4 / depth[:, None]), dtype=np.float64)
    logged.data = np.log1p(logged.data)
    mean = np.asarray(logged.mean(0)).ravel()
    return np.asarray(logged.multiply(logged).mean(0)).ravel() - np.square(mean)


def fractions(groups: list[Group]) -> np.ndarray:
    """Share of each gene in the counts of each type [types, genes]."""
    raw = np.array([group.totals / group.totals.sum() for group in groups])
    prior = raw.mean(0) + 1e-7
    totals = np.array([group.depth.sum() for group in groups])[:, None]
    return (raw * totals + PRIOR_COUNTS * prior) / (totals + PRIOR_COUNTS)


def log_fold_changes(
    control: list[Group], treated: list[Group], fraction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log ratio of treated to control per type and its standard error [types, genes].

    Most genes do not respond, so the median over well-measured genes is the zero of each type;
    what responders add to the total would otherwise show as a fall of all others. One pseudo-count
    per type leans to the ratio over all types.
    """
    after = np.array([group.totals for group in treated])
    before = np.array([group.totals for group in control])
    expected = fraction * after.sum(1, keepdims=True)
    for row, old, new in zip(expected, before, after, strict=True):
        solid = (old > 50) & (new > 50)
        row *= np.exp(np.median(np.log(new[solid] / row[solid])))
    pooled = (after.sum(0) + 1) / (expected.sum(0) + 1)
    change = np.log((after + 1) / (expected + 1 / pooled))
    sizes = [1 / len(c.depth) + 1 / len(t.depth) for c, t in zip(control, treated, strict=True)]
    error = np.sqrt(1 / (after + 1) + 1 / (before + 1) + np.array(sizes)[:, None] / 2)
    return change, error


def significant(change: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Genes that respond: chi-squared over types beyond its 99.9 % point.

    Donors and batches move genes too; a change of 0.1 is counted as within the error.
    """
    return (np.square(change) / (np.square(error) + 0.01)).sum(0) > 24.3


def shrunk(change: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Each type's change pulled to the mean of the types by how badly it is measured.

    The variance between types is fitted as intercept + slope * mean^2 over the responding genes:
    strong responses differ more.
    """
    weight = 1 / (np.square(error) + 0.04)
    for _ in range(20):
        mean = (weight * change).sum(0) / weight.sum(0)
        excess = np.square(change - mean) - np.square(error) * (1 - weight / weight.sum(0))
        rows = np.broadcast_to(np.square(mean), excess.shape)
        touched = np.broadcast_to(mean != 0, excess.shape)
        design = np.stack([np.ones(touched.sum()), rows[touched]], 1)
        precision = weight[touched]
        fit = np.linalg.lstsq(design * precision[:, None], excess[touched] * precision, rcond=None)
        intercept, slope = np.clip(fit[0], 1e-3, None)
        between = intercept + slope * np.square(mean)
        weight = 1 / (np.square(error) + between)
    return mean + between / (between + np.square(error)) * (change - mean)


def share_responding(control: list[Group], treated: list[Group], change: np.ndarray) -> np.ndarray:
    """Per type, the share of treated cells well above the median control cell.

    Measured by the mean log1p over the 20 genes that gain most counts: at least a quarter of the
    way to the median treated cell. 20 cells of the mean are lent to each type.
    """
    expected = sum(group.totals / group.totals.sum() for group in treated)
    strongest = np.argsort(-expected * -np.expm1(-change.mean(0)))[:20]
    responders = []
    for before, after in zip(control, treated, strict=True):
        low, high = (
            np.log1p(group.counts[:, strongest].toarray() * 1e4 / group.depth[:, None]).mean(1)
            for group in (before, after)
        )
        responders.append(high > 0.75 * np.median(low) + 0.25 * np.median(high))
    mean = np.concatenate(responders).mean()
    return np.array([(row.sum() + 20 * mean) / (len(row) + 20) for row in responders])


def response_spread(treated: Moments, change: np.ndarray) -> np.ndarray:
    """Per type, the spread of the strength of the response over cells.

    Its square is the weighted least-squares slope of the treated cells' log covariance on the
    products of the changes, over pairs of genes that respond.
    """
    slopes = []
    for logged, weight, d in zip(treated.logged(), treated.weight, change, strict=True):
        products = np.outer(d, d)
        precision = np.outer(weight, weight) ** 2 * (np.abs(products) > 0.25)
        np.fill_diagonal(precision, 0.0)
        slopes.append((precision * logged * products).sum() / (precision * products**2).sum())
    return np.sqrt(np.maximum(slopes, 0.0))


def population_mean(
    effect: np.ndarray, responding: np.ndarray | float, spread: np.ndarray | float
) -> np.ndarray:
    return 1 - responding + responding * np.exp(effect + np.square(spread * effect) / 2)


def responder_effect(change: np.ndarray, responding: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The mean log effect in a responder that makes the population's mean exp(change).

    By bisection on the rising branch effect > -1 / spread^2.
    """
    low, high = np.full(change.shape, -3.0), np.full(change.shape, 8.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = population_mean(middle, responding[:, None], spread[:, None]) > np.exp(change)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(change == 0, 0.0, (low + high) / 2)


def without_response(
    treated: Moments, effect: np.ndarray, responding: np.ndarray, spread: np.ndarray
) -> Moments:
    """What is left of the treated cells' covariance when all cells respond alike."""
    left = []
    for c, d, share, width in zip(treated.covariance, effect, responding, spread, strict=True):
        mean = population_mean(d, share, width)
        both = population_mean(d[:, None] + d, share, width)
        left.append((1 + c) * np.outer(mean, mean) / both - 1)
    return Moments(left, treated.weight, treated.num_cells)


def type_deviation(groups: list[Group], fraction: np.ndarray, genes: np.ndarray) -> float:
    """Spread over types of the log level of the genes outside the table, counting noise removed."""
    totals = np.array([group.totals[genes] for group in groups[:3]])
    level = np.log(fraction[:3, genes])
    solid = totals.min(0) > 5
    noise = (1 / totals[:, solid]).mean()
    return float(np.sqrt(max(level[:, solid].var(0, ddof=1).mean() - noise, 0.0)))


def log_depth(group: Group) -> np.ndarray:
    logged = np.log(group.depth)
    return np.array([logged.mean(), logged.std()])


def round_to(values: np.ndarray, digits: int) -> list[float]:
    return [float(v) + 0.0 for v in np.round(values, digits)]


def table_text(parameters: dict) -> str:
    """JSON with one gene a line."""
    genes = parameters.pop("genes")
    head = json.dumps(parameters, indent=1)[:-2]
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in genes.items())
    return f'{head},\n "genes": {{\n{rows}\n }}\n}}\n'


if __name__ == "__main__":
    main()
