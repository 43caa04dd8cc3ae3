"""A model of `tiny_cells` that is prepared, built and trained in about a second."""

from dataclasses import dataclass, replace
from functools import cache

from sedd.building import build_contexts, build_denoiser, token_batches, validation_batch
from sedd.data.cells import Cells
from sedd.data.choices import DataConfig
from sedd.data.shards import Shards
from sedd.data.splits import Split, SplitConfig, make_split
from sedd.model.config import ModelConfig
from sedd.model.inputs import Batch, Contexts
from sedd.preparation import prepare
from sedd.training import Batches, StepReport, TrainingState, Workers, start, train
from sedd.training_config import TrainingConfig
from tests.worlds import tiny_cells

TINY_MODEL = ModelConfig(hidden_dim=16, num_layers=1, num_heads=2, token_encoder=4)
TINY_TRAINING = TrainingConfig(
    batch_size=16, max_steps=12, warmup_steps=3, validate_every=4, validation_cells=24
)


def without_b_cells(cells: Cells) -> Split:
    """The perturbed B cells are held out."""
    return make_split(
        SplitConfig(kind="unseen_cell_type", cell_types=("B cell",)),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )


@cache
def tiny_shards() -> Shards:
    """`tiny_cells` without the perturbed B cells, over all 40 genes."""
    cells = tiny_cells()
    return prepare(cells, without_b_cells(cells), DataConfig(), TINY_MODEL)


@dataclass(frozen=True, eq=False)
class TinyRun:
    """All that `train` is given."""

    state: TrainingState
    batches: Batches
    contexts: Contexts
    validation: Batch | None
    config: TrainingConfig

    def steps(self, num_steps: int | None = None, workers: Workers | None = None):
        """Train to the end, or to an earlier step, and return the reports."""
        reports: list[StepReport] = []
        for report in train(
            self.state,
            self.batches,
            self.config,
            self.contexts,
            max_steps=self.config.max_steps,
            validation=self.validation,
            workers=workers,
        ):
            reports.append(report)
            if report.step == num_steps:
                break
        return reports


def tiny_run(model: ModelConfig = TINY_MODEL, **changes: object) -> TinyRun:
    """A fresh run with some values of the training section changed."""
    shards, config = tiny_shards(), replace(TINY_TRAINING, **changes)
    batches = token_batches(shards, config)
    return TinyRun(
        state=start(
            build_denoiser(model, shards.reference, seed=config.seed),
            build_denoiser(model, shards.reference),
            config,
        ),
        batches=batches,
        contexts=build_contexts(model, shards.reference),
        validation=validation_batch(shards, batches, config),
        config=config,
    )
