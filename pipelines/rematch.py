"""The champion judged again, on the evaluation set of a candidate, as the candidate is.

Needed where the two were evaluated on different cells or another split. Both draw the candidate's
held-out conditions anew, each as its own evaluation did, and both are scored on the genes that
they share, by the code that `evaluate` scores with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.bundle import Evaluated
from pipelines.contest import MEASURES, Condition, Scores
from pipelines.evaluation_record import read_scores
from pipelines.fanout import read_part, run_units
from sedd.errors import UsageError
from sedd.evaluation.uncertainty import Interval

if TYPE_CHECKING:
    import numpy as np

    from pipelines.scoring import Truth
    from sedd.evaluation.prediction import Prediction

MIN_SHARED_GENES = 0.5
"""Of the genes of the model with fewer; below it the two tell of different things."""

CANDIDATE, CHAMPION = "candidate", "champion"


class CannotJudgeError(Exception):
    """The champion cannot be judged on the candidate's evaluation set; the text says why."""


@dataclass(frozen=True)
class Rematch:
    """Scores of both and of the baselines on the same cells and genes."""

    scores: Mapping[str, Scores]
    """By method: `CANDIDATE`, `CHAMPION` and the names of baselines."""
    note: str
    """How the two were judged, for a reader."""


def play(candidate: Evaluated, champion: Evaluated, work: Path) -> Rematch:
    """Judge both on the candidate's held-out conditions.

    Args:
        candidate: Its data file is read.
        champion: Another model, drawn as it was evaluated.
        work: A folder for the drawn cells, which all processes that draw can see.

    Raises:
        CannotJudgeError: The champion knows too little of these conditions or genes.
        UsageError: The candidate's data are not there, or are not those it was evaluated on.
    """
    conditions = list(read_scores(candidate.evaluation)[candidate.record.mode][MEASURES[0].key])
    genes = _shared_genes(candidate, champion)
    _require_known(champion, conditions)
    truth = _truth(candidate, genes)
    drawn = {
        name: _draw(of, conditions, genes, work, truth)
        for name, of in ((CANDIDATE, candidate), (CHAMPION, champion))
    }
    scores: dict[str, dict[str, dict[Condition, Interval]]] = {}
    for condition in conditions:
        mine = [drawn[name][condition] for name in drawn]
        for method, found in _score(truth, condition, mine).items():
            for key, interval in found.items():
                scores.setdefault(method, {}).setdefault(key, {})[condition] = interval
    return Rematch(scores, _note(candidate, champion, truth, genes))


def _shared_genes(candidate: Evaluated, champion: Evaluated) -> list[str]:
    ours, theirs = candidate.vocabulary.genes, champion.vocabulary.genes
    shared = [gene for gene in ours if gene in set(theirs)]
    if len(shared) < MIN_SHARED_GENES * min(len(ours), len(theirs)):
        message = (
            f"it knows {len(shared)} of the candidate's {len(ours)} genes "
            f"(and {len(theirs)} in all)"
        )
        raise CannotJudgeError(message)
    return shared


def _require_known(champion: Evaluated, conditions: Sequence[Condition]) -> None:
    from sedd.data.reference import Reference

    reference = Reference.load(champion.source.checkpoint)
    vocabulary = reference.vocabulary
    try:
        vocabulary.perturbation_ids([perturbation for _, perturbation in conditions])
        numbers = vocabulary.cell_type_ids([cell_type for cell_type, _ in conditions])
    except UsageError as error:
        message = f"it does not know the held-out conditions: {str(error).rstrip('.')}"
        raise CannotJudgeError(message) from error
    without = set(numbers.tolist()) - set(reference.control_cells.cell_type.tolist())
    if without:
        names = ", ".join(repr(vocabulary.cell_types[number]) for number in sorted(without))
        message = f"it has no control cells of {names} to start from"
        raise CannotJudgeError(message)


def _truth(candidate: Evaluated, genes: Sequence[str]) -> "Truth":
    from pipelines.experiment import load_cells
    from pipelines.scoring import make_truth
    from sedd.data.reference import Reference
    from sedd.data.splits import Split
    from sedd.evaluation.shifts import Perturbations

    cells = load_cells(candidate.config)
    split = Split.load(candidate.folder / "split.json", data_digest=cells.source.digest)
    reference = Reference.load(candidate.source.checkpoint)
    meaning = Perturbations.of(reference.vocabulary, reference.perturbation_vectors)
    control = candidate.config.data.control_name
    return make_truth(cells.select(None, genes), split, control, meaning, None)


def _draw(
    of: Evaluated,
    conditions: Sequence[Condition],
    genes: Sequence[str],
    work: Path,
    truth: "Truth",
) -> dict[Condition, "Prediction"]:
    """Cells of each condition over the shared genes, drawn as the model's own evaluation did."""
    import numpy as np

    from pipelines.scoring import TWINS, units_of
    from sedd.data.reference import Reference
    from sedd.evaluation.prediction import Prediction
    from sedd.generation import log1p_cp10k, plan_units

    how, scaling = of.record.inference, of.config.scaling
    plan = {(t, p): plan_units([t], [p], how) for t, p in conditions}
    run_units(
        of.source,
        [unit for units in plan.values() for unit in units],
        how,
        work,
        num_actors=scaling.num_actors,
    )
    reference = Reference.load(of.source.checkpoint)
    number = {gene: index for index, gene in enumerate(reference.vocabulary.genes)}
    columns = np.array([number[gene] for gene in genes])
    kept = reference.control_cells
    drawn = {}
    for condition, units in plan.items():
        parts = [read_part(work, unit, of.source, how) for unit in units]
        cells = np.concatenate([part.log1p_cp10k() for part in parts])[:, columns]
        rows = np.concatenate([part.control_row for part in parts])
        made = Prediction.of_cells(how.mode, cells, rows, units_of(len(rows), how.shard_size))
        if how.mode == TWINS:  # rows are of its own training file: its control cells are its own
            at = kept.positions(rows)
            own = log1p_cp10k(kept.values[at], kept.depth[at])[:, columns]
            made = made.as_twins(own, truth.controls(condition[0]))
        drawn[condition] = made
    return drawn


def _score(
    truth: "Truth", condition: Condition, mine: Sequence["Prediction"]
) -> dict[str, dict[str, Interval]]:
    from sedd.evaluation.baselines import ADDITIVE, MEAN_OF_OTHERS, baseline_predictions
    from sedd.evaluation.metrics import score
    from sedd.evaluation.resampling import ScoreBootstrap

    real, control = truth.log1p[truth.held_out(*condition)], truth.controls(condition[0])
    bootstrap = ScoreBootstrap(real, control)
    named: dict[str, Prediction] = dict(zip((CANDIDATE, CHAMPION), mine, strict=True))
    for other in baseline_predictions(truth.training, *condition):
        if other.name in (ADDITIVE, MEAN_OF_OTHERS):
            named[other.name] = other
    found = {}
    for name, prediction in named.items():
        intervals = bootstrap.intervals(prediction, score(prediction, real, control))
        found[name] = {measure.key: intervals[measure.key] for measure in MEASURES}
    return found


def _note(candidate: Evaluated, champion: Evaluated, truth: "Truth", genes: Sequence[str]) -> str:
    """What a reader of the numbers has to know."""
    note = f"both were judged anew on the candidate's evaluation set, over {len(genes)} genes"
    seen = _seen_by(champion, truth.split.test, candidate.record.data_digest)
    if seen is None:
        return f"{note}; the champion learned from other data, which may hold these cells"
    if seen:
        told = f"{seen} of the {len(truth.split.test)} held-out cells"
        return f"{note}; the champion was trained on {told}, which favours it"
    return note


def _seen_by(champion: Evaluated, test: "np.ndarray", data_digest: str) -> int | None:
    """How many of these rows the champion was trained on; None if its data were others."""
    import numpy as np

    from sedd.data.splits import Split

    if champion.record.data_digest != data_digest:
        return None
    split = Split.load(champion.folder / "split.json")
    return int(np.isin(test, np.concatenate([split.train, split.validation])).sum())
