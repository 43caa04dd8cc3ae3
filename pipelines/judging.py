"""The field's judges on an evaluation: whole cell types, every method, their files kept."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sedd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from pipelines.scoring import Truth
    from sedd.evaluation.judge_tables import Judged
    from sedd.evaluation.judges import LabelledCounts, Question
    from sedd.evaluation.prediction import Prediction

Condition = tuple[str, str]


def require_judgeable(judges: Sequence[str], kind: str) -> None:
    """UsageError, before anything is computed, if the judges cannot be asked at all."""
    from sedd.evaluation.judges import require_judges

    if judges and kind != "counts":
        message = (
            f"The judges ({', '.join(judges)}) take raw counts and these cells hold log1p values. "
            "Train on a layer with counts (data.layer), or evaluate without --judges."
        )
        raise UsageError(message)
    require_judges(judges)


def judge_predictions(
    judges: Sequence[str],
    truth: "Truth",
    predictions: Mapping[Condition, Mapping[str, "Prediction"]],
    folder: Path,
) -> list["Judged"]:
    """Every judge on every method for each cell type with all its held-out perturbations.

    A method is judged on a cell type if it predicts each of its perturbations. The files that the
    judges read stay in `folder/JUDGE/CELL TYPE/METHOD`, for anyone who wants to ask again.
    """
    from sedd.evaluation.judge_tables import Judged
    from sedd.evaluation.judges import judge
    from sedd.storage import folder_names

    cell_types = list(dict.fromkeys(cell_type for cell_type, _ in predictions))
    names = folder_names(cell_types)
    return [
        Judged(method, cell_type, judge(name, question, folder / name / names[cell_type] / method))
        for cell_type in (cell_types if judges else ())
        for method, question in _questions(truth, cell_type, predictions)
        for name in judges
    ]


def write_judged(folder: Path, judged: Sequence["Judged"]) -> None:
    """`judges.csv` and `judges_left_out.csv`; those of an earlier evaluation go in any case."""
    from sedd.evaluation.judge_tables import left_out_table, verdict_table
    from sedd.storage import write_text

    tables = {"judges.csv": verdict_table(judged), "judges_left_out.csv": left_out_table(judged)}
    for name, table in tables.items():
        (folder / name).unlink(missing_ok=True)
        if judged:
            write_text(folder / name, table.to_csv(index=False))


def _questions(
    truth: "Truth", cell_type: str, predictions: Mapping[Condition, Mapping[str, "Prediction"]]
) -> Iterator[tuple[str, "Question"]]:
    """Model modes, baselines and the ceiling of one cell type, each as a question to a judge."""
    import numpy as np

    from sedd.evaluation.baselines import CEILING
    from sedd.evaluation.judges import Question

    rows = {p: truth.held_out(t, p) for t, p in predictions if t == cell_type}
    control_name = truth.training.control_name
    known_control = _known_rows(truth)[truth.training.rows(cell_type, control_name)]
    control = _real(truth, {control_name: known_control})

    def ask(predicted: "LabelledCounts", real: "LabelledCounts") -> "Question":
        return Question(truth.cells.genes, control_name, predicted, real, control)

    real = _real(truth, rows)
    by_method: dict[str, dict[str, LabelledCounts]] = {}
    for perturbation in rows:
        condition = cell_type, perturbation
        for name, cells in _predicted(truth, condition, predictions[condition]):
            by_method.setdefault(name, {})[perturbation] = cells
    for method, parts in by_method.items():
        if parts.keys() == rows.keys():
            yield method, ask(_together(list(parts.values())), real)
    if all(len(some) >= 4 for some in rows.values()):
        rng = np.random.default_rng(0)
        halves = {p: np.array_split(rng.permutation(some), 2) for p, some in rows.items()}
        first, second = ({p: half[side] for p, half in halves.items()} for side in (0, 1))
        yield CEILING, ask(_real(truth, first), _real(truth, second))


def _predicted(
    truth: "Truth", condition: Condition, modes: Mapping[str, "Prediction"]
) -> Iterator[tuple[str, "LabelledCounts"]]:
    """Whole counts of every method at the library sizes that it made its cells for."""
    from sedd.evaluation.baselines import MEAN_OF_OTHERS, baseline_predictions
    from sedd.evaluation.judges import LabelledCounts, rounded_counts

    cell_type, perturbation = condition
    known, training = _known_rows(truth), truth.training
    pooled = training.rows_of_others(cell_type, perturbation)
    control = known[training.rows(cell_type, training.control_name)]
    for prediction in (*modes.values(), *baseline_predictions(training, *condition)):
        rows = control if prediction.control_row is None else prediction.control_row
        rows = known[pooled] if prediction.name == MEAN_OF_OTHERS else rows
        depth = truth.cells.depth[rows]
        counts = rounded_counts(prediction.cells_log1p, depth)
        yield prediction.name, LabelledCounts(counts, _labels(perturbation, len(counts)), depth)


def _known_rows(truth: "Truth") -> "np.ndarray":
    """Rows of the cells that `truth.training` holds, in its order."""
    import numpy as np

    return np.sort(np.concatenate([truth.split.train, truth.split.validation]))


def _real(truth: "Truth", rows: Mapping[str, "np.ndarray"]) -> "LabelledCounts":
    """Real cells at these rows, under the label they are given with."""
    from sedd.evaluation.judges import LabelledCounts

    return _together(
        [
            LabelledCounts(
                truth.cells.expression[some].toarray(),
                _labels(label, len(some)),
                truth.cells.depth[some],
            )
            for label, some in rows.items()
        ]
    )


def _together(parts: Sequence["LabelledCounts"]) -> "LabelledCounts":
    import numpy as np

    from sedd.evaluation.judges import LabelledCounts

    return LabelledCounts(
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.perturbation for part in parts]),
        np.concatenate([part.depth for part in parts]),
    )


def _labels(label: str, num_cells: int) -> "np.ndarray":
    import numpy as np

    return np.full(num_cells, label, dtype=object)
