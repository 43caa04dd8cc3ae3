"""What the jobs of a quality study wrote, as tables."""

import json
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.quality_study import digest_of, job_from_json
from sedd.evaluation.baselines import BASELINES
from sedd.evaluation.resampling import RANGES
from sedd.evaluation.trust import MIN_RELIABILITY
from sedd.evaluation.uncertainty import Interval, mean_interval, paired_difference

SCORING = (
    "sedd/evaluation", "pipelines/scoring.py", "benchmarks/quality_score.py",
    "benchmarks/quality_vectors.py",
)  # fmt: skip
"""Sources that shape a score; scores of other sources are made anew."""

JUDGING = (*SCORING, "pipelines/judging.py", "benchmarks/quality_judges.py")
"""Sources that shape what the judges are asked and how their answers are kept."""

JUDGED = ("judges.csv", "judges_left_out.csv")
"""What `pipelines.judging.write_judged` leaves in the folder of a job."""

ASKED_BY = "judging.txt"
"""Beside them: the digest of the sources that asked."""

UNBOUNDED = (-np.inf, np.inf)


@dataclass(frozen=True)
class Results:
    """All scores of a study: one row per variant, fold, seed, condition and method.

    Attributes:
        scores: Scores and limits of every method; `attainable` is Pearson over its reliability,
            `group` what conditions are drawn together with (`sedd.evaluation.uncertainty`).
        separation: Discrimination and likeness of every method, by cell type.
        judged: What the field's judges said, one row per number; empty unless they were asked.
        left_out: Metrics that a judge could not compute, and why.
        facts: Cost, data, commit, machine and scoring of every job.
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
    kinds = set()
    for folder in folders:
        job = job_from_json((folder / "job.json").read_text(encoding="utf-8"))
        where = {"variant": job.variant, "fold": job.fold, "seed": job.seed}
        content = read_scores(folder)
        scores += [where | record for record in content["records"]]
        separations += [where | record for record in content["separation"]]
        verdicts, unasked = _read_judged(folder)
        judged.append(verdicts.assign(**where))
        left_out.append(unasked.assign(**where))
        kinds.add(job.config.split.kind)
        written = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        facts.append(where | written | {"scoring": content.get("scoring", "unknown")})
    table = pd.DataFrame(scores)
    reliability = table["shift_reliability"]
    reliable = reliability >= MIN_RELIABILITY
    table["attainable"] = np.where(reliable, table["pearson"] / reliability, np.nan)
    table["condition"] = table["cell_type"] + " × " + table["perturbation"]
    table["group"] = table[_unit(kinds, table["perturbation"].nunique())]
    return Results(
        table,
        pd.DataFrame(separations),
        pd.concat(judged, ignore_index=True),
        pd.concat(left_out, ignore_index=True),
        pd.DataFrame(facts),
    )


def scoring_digest() -> str:
    """Hash of the sources that shape a score."""
    return digest_of(SCORING)


def read_scores(folder: Path) -> dict[str, Any]:
    """What `score_job` wrote about a job."""
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def is_scored(folder: Path, *, baselines: bool) -> bool:
    """Whether the scores of a job are there, by the sources of now, and the baselines if wanted."""
    if not (folder / "scores.json").is_file():
        return False
    content = read_scores(folder)
    beside = {record["method"] for record in content["records"]} & set(BASELINES)
    return content.get("scoring") == scoring_digest() and (bool(beside) or not baselines)


def judging_digest() -> str:
    """Hash of the sources that ask the judges."""
    return digest_of(JUDGING)


def is_judged(folder: Path) -> bool:
    """Whether the field's judges were asked about this job, by the sources of now."""
    asked_by = folder / ASKED_BY
    written = all((folder / name).is_file() for name in JUDGED) and asked_by.is_file()
    return written and asked_by.read_text(encoding="utf-8") == judging_digest()


def by_condition(rows: pd.DataFrame, metric: str) -> dict[Hashable, list[float]]:
    """The values of each condition, one for each seed."""
    return {
        str(name): group[metric].astype(float).tolist() for name, group in rows.groupby("condition")
    }


def groups_of(rows: pd.DataFrame) -> dict[Hashable, str]:
    """The group of each condition."""
    return {str(name): str(rest["group"].iloc[0]) for name, rest in rows.groupby("condition")}


def mean_of(rows: pd.DataFrame, metric: str) -> Interval:
    """Mean of a score over conditions, its interval over groups and within the score's range."""
    found = mean_interval(by_condition(rows, metric), clusters=groups_of(rows))
    return found.within(*RANGES.get(metric, UNBOUNDED))


def difference_of(rows: pd.DataFrame, others: pd.DataFrame, metric: str) -> Interval:
    """The paired difference of two methods (or variants), as `mean_of`.

    Others that are the same everywhere, as no change is 0, leave it half of the room.
    """
    mine, theirs = (by_condition(side, metric) for side in (rows, others))
    low, high = RANGES.get(metric, UNBOUNDED)
    found = paired_difference(mine, theirs, clusters=groups_of(rows))
    least, most = others[metric].min(), others[metric].max()
    if least < most:
        least, most = low, high
    return found.within(low - most, high - least)


def _unit(kinds: Set[str], num_perturbations: int) -> str:
    """What the conditions of a group share, and an interval speaks for.

    Where cell types are held out, those of one type share its control cells and the model that
    never saw it perturbed. Else those of one perturbation share its effect, in all the types that
    show it; a single perturbation leaves the types to speak for.
    """
    by_type = "unseen_cell_type" in kinds or num_perturbations < 2
    return "cell_type" if by_type else "perturbation"


def _read_judged(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the judges said and what they left out; empty tables if they were not asked."""
    if not is_judged(folder):
        return pd.DataFrame(), pd.DataFrame()
    verdicts, left_out = (pd.read_csv(folder / name) for name in JUDGED)
    return verdicts, left_out
