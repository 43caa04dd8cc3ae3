"""What the jobs of a quality study wrote, as tables."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

JUDGED = ("judges.csv", "judges_left_out.csv")
"""What `pipelines.judging.write_judged` leaves in the folder of a job."""

LEAST_RELIABLE = 0.2
"""Below it a real shift is mostly noise, and no share of it can be said to be reached."""


@dataclass(frozen=True)
class Results:
    """All scores of a study: one row per variant, fold, seed, condition and method.

    Attributes:
        scores: Scores and limits of every method; `attainable` is Pearson over its reliability.
        separation: Discrimination and likeness of every method, by cell type.
        judged: What the field's judges said, one row per number; empty unless they were asked.
        left_out: Metrics that a judge could not compute, and why.
        facts: Cost, data, commit and machine of every job.
    """

    scores: pd.DataFrame
    separation: pd.DataFrame
    judged: pd.DataFrame
    left_out: pd.DataFrame
    facts: pd.DataFrame

    def of_variant(self, variant: str) -> "Results":
        """The same of one variant."""
        tables = (self.scores, self.separation, self.judged, self.left_out, self.facts)
        chosen = (table[table["variant"] == variant] if len(table) else table for table in tables)
        return Results(*chosen)


def read_results(folders: Sequence[Path]) -> Results:
    """Read what the jobs wrote."""
    scores, separations, judged, left_out, facts = [], [], [], [], []
    for folder in folders:
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        seed = int(job["config"].split("training:")[1].split("seed: ")[1].split("\n")[0])
        where = {"variant": job["variant"], "fold": job["fold"], "seed": seed}
        content = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        scores += [where | record for record in content["records"]]
        separations += [where | record for record in content["separation"]]
        verdicts, unasked = _read_judged(folder)
        judged.append(verdicts.assign(**where))
        left_out.append(unasked.assign(**where))
        facts.append(where | json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    table = pd.DataFrame(scores)
    reliability = table["shift_reliability"]
    reliable = reliability >= LEAST_RELIABLE
    table["attainable"] = np.where(reliable, table["pearson"] / reliability, np.nan)
    table["condition"] = table["cell_type"] + " × " + table["perturbation"]
    return Results(
        table,
        pd.DataFrame(separations),
        pd.concat(judged, ignore_index=True),
        pd.concat(left_out, ignore_index=True),
        pd.DataFrame(facts),
    )


def is_judged(folder: Path) -> bool:
    """Whether the field's judges were asked about this job."""
    return all((folder / name).is_file() for name in JUDGED)


def by_condition(rows: pd.DataFrame, metric: str) -> dict[Hashable, list[float]]:
    """The values of each condition, one for each seed."""
    return {
        str(name): group[metric].astype(float).tolist() for name, group in rows.groupby("condition")
    }


def _read_judged(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the judges said and what they left out; empty tables if they were not asked."""
    if not is_judged(folder):
        return pd.DataFrame(), pd.DataFrame()
    verdicts, left_out = (pd.read_csv(folder / name) for name in JUDGED)
    return verdicts, left_out
