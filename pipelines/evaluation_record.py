"""What an evaluation leaves for programs: which model was scored on which cells, and its scores."""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sedd.config import from_dict
from sedd.errors import UsageError
from sedd.inference import InferenceConfig
from sedd.storage import file_digest, write_text

if TYPE_CHECKING:
    from pipelines.contest import Scores
    from sedd.evaluation.report import Provenance

RECORD = "evaluation.json"
TABLE = "per_condition.csv"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """Equal digests of data and split mean the same cells held out: scores may be compared."""

    data_digest: str
    split_digest: str
    model_digest: str
    scores_digest: str
    """Of the file of scores, so that a table of another evaluation is noticed."""
    inference: InferenceConfig
    """How the scored cells were generated, whatever their labels."""

    @classmethod
    def of(cls, folder: Path, how: InferenceConfig, known: "Provenance") -> "EvaluationRecord":
        """The record of the scores in a folder, of cells that were generated like this."""
        return cls(
            data_digest=known.data_digest,
            split_digest=known.split_hash,
            model_digest=known.model_digest,
            scores_digest=file_digest(folder / TABLE),
            inference=replace(how, cell_type=None, cell_types=(), perturbations=()),
        )

    @property
    def mode(self) -> str:
        """The method, in the table of scores, that is the model's default."""
        return self.inference.mode

    def save(self, folder: Path) -> None:
        """Write `evaluation.json`."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        write_text(folder / RECORD, text + "\n")

    @classmethod
    def load(cls, folder: Path) -> "EvaluationRecord":
        """Read what `save` wrote.

        Raises:
            UsageError: Nothing was evaluated there, or by an earlier commit, or the scores beside
                the record are others.
        """
        again = _evaluate_command(folder)
        try:
            content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            asked = {"inference": content.pop("inference")}
            found = cls(inference=from_dict(asked, source=RECORD).inference, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            message = (
                f"{folder} holds no evaluation that can be compared ({RECORD} is missing or not "
                f"ours). Evaluate first: {again}."
            )
            raise UsageError(message) from error
        table = folder / TABLE
        if not table.is_file() or file_digest(table) != found.scores_digest:
            message = f"{table} is missing or of another evaluation. Evaluate again: {again}."
            raise UsageError(message)
        return found


def read_scores(folder: Path) -> Mapping[str, "Scores"]:
    """The scores of every method in `per_condition.csv`, with their intervals.

    Raises:
        UsageError: There is no such table.
    """
    import pandas as pd

    from pipelines.contest import MEASURES, Condition
    from sedd.evaluation.uncertainty import Interval

    path = folder / TABLE
    try:
        labels = dict.fromkeys(("cell_type", "perturbation", "method"), str)
        table = pd.read_csv(path, dtype=labels, keep_default_na=False, na_values=[""])
        rows = table.to_dict("records")
        found: dict[str, dict[str, dict[Condition, Interval]]] = {}
        for row in rows:
            condition = str(row["cell_type"]), str(row["perturbation"])
            of_method = found.setdefault(str(row["method"]), {m.key: {} for m in MEASURES})
            for key, scores in of_method.items():
                bounds = (row[key], row[f"{key}_low"], row[f"{key}_high"])
                scores[condition] = Interval(*map(float, bounds))
    except (OSError, KeyError, ValueError) as error:
        message = f"{path} cannot be read ({error}). Evaluate again: {_evaluate_command(folder)}."
        raise UsageError(message) from error
    return found


def _evaluate_command(folder: Path) -> str:
    return f"python -m pipelines.evaluate --experiment_dir {shlex.quote(str(folder.parent))}"
