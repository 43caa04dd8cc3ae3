"""What `evaluate` adds for those who must decide whether to trust it: separation and model card."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.repeat import Evaluated, evaluate_command, repeat_commands
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


def provenance_of(evaluated: Evaluated, truth: "Truth", model_digest: str) -> "Provenance":
    """What was evaluated, and the command that does it again."""
    from sedd.evaluation.report import Provenance

    return Provenance(
        data_digest=truth.cells.source.digest,
        split_hash=truth.split.digest,
        model_digest=model_digest,
        seed=evaluated.how.seed,
        command=evaluate_command(evaluated),
        versions={name: importlib.metadata.version(name) for name in ("torch", "ray", "mlflow")},
    )


def document(
    output: Path,
    evaluated: Evaluated,
    truth: "Truth",
    trained: "Trained",
    provenance: "Provenance",
    results: Sequence["ConditionResult"],
) -> list["Separation"]:
    """Write `separation.csv` (where there is one to write) and `model_card.md`."""
    from pipelines.scoring import separate
    from sedd.storage import write_text

    shifts = {(r.cell_type, r.perturbation): r.shifts for r in results}
    separations = separate(truth, shifts)
    path = output / "separation.csv"
    path.unlink(missing_ok=True)
    if separations:
        write_text(path, _table(separations).to_csv(index=False))
    card = output / "model_card.md"
    _write_card(card, evaluated, truth, trained, provenance, results, separations)
    return separations


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
    evaluated: Evaluated,
    truth: "Truth",
    trained: "Trained",
    provenance: "Provenance",
    results: Sequence["ConditionResult"],
    separations: Sequence["Separation"],
) -> None:
    from sedd.evaluation.card import CardFacts, write_model_card

    vocabulary, experiment = trained.reference.vocabulary, evaluated.experiment
    facts = CardFacts(
        name=Path(experiment.experiment_dir).name,
        data_file=Path(truth.cells.source.path).name,
        num_cells=len(truth.cells),
        num_genes=len(truth.cells.genes),
        cell_types=tuple(vocabulary.cell_types),
        perturbations=vocabulary.perturbations[1:],
        control_name=vocabulary.control_name,
        split_kind=truth.split.kind,
        held_out=truth.split.held_out,
        num_parameters=sum(p.numel() for p in trained.denoiser.parameters()),
        training_step=trained.step,
        training_seed=experiment.training.seed,
        training_seconds=_training_seconds(experiment),
        mode=evaluated.how.mode,
        num_steps=evaluated.how.num_steps,
        commands=repeat_commands(evaluated),
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
