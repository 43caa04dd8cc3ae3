"""A trained and evaluated experiment as one folder that travels: what a model version holds.

    config.yaml  vocabulary.json  split.json   as in the experiment
    checkpoints/NAME/                          the checkpoint that generates, without what only
                                               training needs
    evaluation/                                evaluation.json, per_condition.csv, model_card.md

It is itself an experiment directory: `generate` reads it as such.
"""

import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.evaluation_record import RECORD, TABLE, EvaluationRecord
from sedd.config import Config
from sedd.errors import StorageError, UsageError

if TYPE_CHECKING:
    from pipelines.fanout import Source
    from sedd.data.vocabulary import Vocabulary

CARD = "model_card.md"
ONLY_TRAINING = ("model.safetensors", "optimizer.safetensors")
"""Files of a checkpoint that generation never reads."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An experiment directory, or a bundle, whose model is the one that was evaluated."""

    folder: Path
    config: Config
    source: "Source"
    record: EvaluationRecord

    @property
    def evaluation(self) -> Path:
        """Where its scores are."""
        return self.folder / "evaluation"

    @property
    def vocabulary(self) -> "Vocabulary":
        """The labels and genes that the model knows."""
        from sedd.data.vocabulary import Vocabulary

        return Vocabulary.from_json((self.folder / "vocabulary.json").read_text(encoding="utf-8"))


def open_evaluated(folder: Path, *, checkpoint_dir: Path | None = None) -> Evaluated:
    """Read an experiment and make sure that its evaluation is of its present model.

    Raises:
        UsageError: The folder is no experiment, was not evaluated, or was trained on since.
        StorageError: Its checkpoint is damaged.
    """
    from pipelines.experiment import load_config
    from pipelines.generate import find_source

    config = replace(load_config(folder), experiment_dir=str(folder), resume=None)
    if checkpoint_dir is not None:
        config = replace(config, checkpoint_dir=str(checkpoint_dir))
    record = EvaluationRecord.load(folder / "evaluation")
    missing = [name for name in (TABLE, CARD) if not (folder / "evaluation" / name).is_file()]
    if missing:
        message = (
            f"{folder / 'evaluation'} lacks {' and '.join(missing)}. Evaluate again: "
            f"python -m pipelines.evaluate --experiment_dir {shlex.quote(str(folder))}."
        )
        raise UsageError(message)
    source = find_source(config)
    if source.digest != record.model_digest:
        message = (
            f"The evaluation in {folder} is of another model (digest {record.model_digest[:12]}) "
            f"than its checkpoint {source.checkpoint} ({source.digest[:12]}). Generate and "
            "evaluate again, then register."
        )
        raise UsageError(message)
    return Evaluated(folder=folder, config=config, source=source, record=record)


def open_bundle(folder: Path, digest: str | None = None) -> Evaluated:
    """Read a bundle; its checkpoint is verified, and is the one with this digest if it is given.

    Raises:
        StorageError: It is damaged, or is not the model that it should be.
    """
    from sedd.storage import verify_folder

    for checkpoint in (folder / "checkpoints").glob("*"):
        verify_folder(checkpoint)
    try:
        found = open_evaluated(folder, checkpoint_dir=folder / "checkpoints")
    except UsageError as error:
        message = f"The model's files are damaged or not this program's: {error}"
        raise StorageError(message) from error
    if digest not in (None, found.source.digest):
        message = (
            f"The model's weights have the digest {found.source.digest}, but {digest} was "
            "registered: the files were changed. Register the experiment again."
        )
        raise StorageError(message)
    return found


def write_bundle(evaluated: Evaluated, target: Path) -> None:
    """Copy what generating and judging need into a new folder.

    Raises:
        StorageError: The disk refuses, or the copy is not the same model.
    """
    from sedd.storage import whole_folder

    evaluation = target / "evaluation"
    evaluation.mkdir(parents=True)
    for name in ("config.yaml", "vocabulary.json", "split.json"):
        shutil.copyfile(evaluated.folder / name, target / name)
    for name in (RECORD, TABLE, CARD):
        shutil.copyfile(evaluated.evaluation / name, evaluation / name)
    checkpoint = evaluated.source.checkpoint
    with whole_folder(target / "checkpoints" / checkpoint.name) as folder:
        shutil.copytree(
            checkpoint, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*ONLY_TRAINING)
        )
    open_bundle(target, evaluated.source.digest)
