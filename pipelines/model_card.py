"""What `evaluate` adds for those who must decide whether to trust it: separation and model card."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sedd.config import Config

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.scoring import Truth
    from sedd.checkpoint import Trained
    from sedd.evaluation.discrimination import Separation
    from sedd.evaluation.report import ConditionResult, Provenance, ReportTable

COLUMNS = {
    "num_predicted": "perturbations",
    "discrimination_l1": "PDS, size",
    "discrimination_cosine": "PDS, direction",
    "likeness_predicted": "likeness",
    "likeness_real": "real likeness",
}
CAPTION = (
    "PDS: place of the true perturbation among the evaluated ones of the type, by distance of its "
    "real shift to the predicted one (size: mean absolute difference; direction: cosine); 1 is "
    "best, .5 is chance. Likeness: mean Pearson between the shifts of two perturbations, the real "
    "one freed of noise. One answer to different questions has likeness 1."
)


def provenance_of(config: Config, truth: "Truth", model_digest: str) -> "Provenance":
    """What was evaluated, and the command that does it again."""
    from sedd.evaluation.report import Provenance

    return Provenance(
        data_digest=truth.cells.source.digest,
        split_hash=truth.split.digest,
        model_digest=model_digest,
        seed=config.inference.seed,
        command=f"python -m pipelines.evaluate --experiment_dir {Path(config.experiment_dir).name}",
        versions={name: importlib.metadata.version(name) for name in ("torch", "ray", "mlflow")},
    )


def document(
    output: Path,
    config: Config,
    truth: "Truth",
    trained: "Trained",
    provenance: "Provenance",
    results: Sequence["ConditionResult"],
) -> list["Separation"]:
    """Write `separation.csv` (where there is one to write) and `model_card.md`."""
    from sedd.storage import write_text

    separations = separate(truth, results)
    path = output / "separation.csv"
    path.unlink(missing_ok=True)
    if separations:
        write_text(path, _table(separations).to_csv(index=False))
    card = output / "model_card.md"
    _write_card(card, config, truth, trained, provenance, results, separations)
    return separations


def separate(truth: "Truth", results: Sequence["ConditionResult"]) -> list["Separation"]:
    """How each method tells the held-out perturbations of a cell type apart, where there are two.

    A method counts in a cell type if it predicts each of them. The ceiling is half of the real
    cells, to be found among the other halves.
    """
    from sedd.evaluation.baselines import CEILING, split_half_ceiling
    from sedd.evaluation.discrimination import separation
    from sedd.evaluation.report import order_methods

    found = []
    for cell_type in dict.fromkeys(result.cell_type for result in results):
        of_type = {r.perturbation: r for r in results if r.cell_type == cell_type}
        if len(of_type) < 2:
            continue
        control = truth.controls(cell_type)
        real = {name: truth.log1p[truth.held_out(cell_type, name)] for name in of_type}
        halves = {
            name: half
            for name, cells in real.items()
            if (half := split_half_ceiling(cells).against_log1p) is not None
        }
        for method in order_methods(name for result in of_type.values() for name in result.shifts):
            shifts = {n: r.shifts[method] for n, r in of_type.items() if method in r.shifts}
            candidates = halves if method == CEILING else real
            if len(shifts) == len(of_type):
                found.append(
                    separation(cell_type, method, shifts, candidates, control, truth.cells.genes)
                )
    return found


def separation_tables(separations: Sequence["Separation"]) -> list["ReportTable"]:
    """A table for each cell type, with the alarms below it."""
    from sedd.evaluation.plots import method_label
    from sedd.evaluation.report import ReportTable

    tables = []
    for cell_type in dict.fromkeys(each.cell_type for each in separations):
        of_type = [each for each in separations if each.cell_type == cell_type]
        table = _table(of_type).set_index("method")[list(COLUMNS)].rename(columns=COLUMNS)
        alarms = tuple(
            f"Alarm: the shifts by {method_label(each.method)} are more alike than the real ones."
            for each in of_type
            if each.likeness.collapsed
        )
        tables.append(
            ReportTable(f"{cell_type}: telling perturbations apart", CAPTION, table, {}, alarms)
        )
    return tables


def separation_metrics(separations: Sequence["Separation"], mode: str) -> dict[str, float]:
    """Means over cell types of what the default mode reaches, and its number of alarms."""
    own = [each for each in separations if each.method == mode]
    if not own:
        return {}
    means = _table(own)[["discrimination_l1", "discrimination_cosine"]].mean()
    metrics = {f"eval/{name}": float(value) for name, value in means.items()}
    return {**metrics, "eval/collapse_alarms": float(sum(e.likeness.collapsed for e in own))}


def _write_card(
    path: Path,
    config: Config,
    truth: "Truth",
    trained: "Trained",
    provenance: "Provenance",
    results: Sequence["ConditionResult"],
    separations: Sequence["Separation"],
) -> None:
    from sedd.evaluation.card import CardFacts, write_model_card

    vocabulary = trained.reference.vocabulary
    name = Path(config.experiment_dir).name
    facts = CardFacts(
        name=name,
        data_file=Path(truth.cells.source.path).name,
        num_cells=len(truth.cells),
        num_genes=len(truth.cells.genes),
        cell_types=tuple(vocabulary.cell_types),
        perturbations=tuple(p for p in vocabulary.perturbations if p != config.data.control_name),
        control_name=config.data.control_name,
        split_kind=truth.split.kind,
        held_out=truth.split.held_out,
        num_parameters=sum(p.numel() for p in trained.denoiser.parameters()),
        training_step=trained.step,
        training_seed=config.training.seed,
        training_seconds=_training_seconds(config),
        mode=config.inference.mode,
        num_steps=config.inference.num_steps,
        commands=(
            f"python -m pipelines.train --config {name}/config.yaml --experiment_dir again",
            "python -m pipelines.generate --experiment_dir again",
            "python -m pipelines.evaluate --experiment_dir again",
        ),
        provenance=provenance,
    )
    write_model_card(path, results, facts, separations)


def _table(separations: Sequence["Separation"]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "cell_type": each.cell_type,
                "method": each.method,
                "num_predicted": each.num_predicted,
                "num_candidates": each.num_candidates,
                "discrimination_l1": each.discrimination_l1,
                "discrimination_cosine": each.discrimination_cosine,
                "likeness_predicted": each.likeness.predicted,
                "likeness_real": each.likeness.real,
                "likeness_perturbations": each.likeness.num_perturbations,
                "collapse_alarm": each.likeness.collapsed,
            }
            for each in separations
        ]
    )


def _training_seconds(config: Config) -> float | None:
    """Time of all training steps by the journal; None where there is none."""
    from pipelines.journal import FILE_NAME, read_journal

    points = read_journal(Path(config.experiment_dir) / FILE_NAME)
    speeds = [p.metrics["speed/cells_per_s"] for p in points if "speed/cells_per_s" in p.metrics]
    if not speeds:
        return None
    return sum(config.training.batch_size / speed for speed in speeds)
