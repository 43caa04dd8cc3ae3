"""What came of a sweep, for people: a table of trials and quality against cost."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.journal import FILE_NAME, read_journal
from pipelines.tuning.search import Search
from pipelines.tuning.space import told
from pipelines.tuning.sweep import SweepFolder, Trial, winner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.tracking import DriverRun

COST = ("nelbo", "num_parameters", "cells_seen", "wall_s")


def write_summary(sweep: SweepFolder) -> list[Path]:
    """Write `trials.csv`, `trials.md` and `quality_against_cost.png`; returns their paths."""
    from sedd.storage import write_text

    trials = sweep.trials()
    paths = [sweep.path / name for name in ("trials.csv", "trials.md", "quality_against_cost.png")]
    write_text(paths[0], as_csv(trials))
    write_text(paths[1], as_markdown(trials) + "\n")
    courses = {trial.name: _course(sweep.folder(trial.name)) for trial in trials}
    cost_figure(trials, courses).savefig(paths[2], dpi=150)
    return paths


def as_csv(trials: Sequence[Trial]) -> str:
    """All numbers of all trials, unrounded; best first."""
    text = io.StringIO()
    names = _names(trials)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *names, *COST, "reason"])
    for trial in ranked(trials):
        values = ["" if trial.point.get(n) is None else trial.point[n] for n in names]
        cost = ["" if getattr(trial, n) is None else getattr(trial, n) for n in COST]
        writer.writerow([trial.name, trial.state, *values, *cost, trial.reason])
    return text.getvalue()


def as_markdown(trials: Sequence[Trial]) -> str:
    """The table for a run's note, best first; the chosen trial is bold."""
    names, best = _names(trials), winner(list(trials))
    head = ["trial", "state", *(name.rpartition(".")[2] for name in names)]
    head += ["NELBO", "parameters", "cells seen", "seconds"]
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for trial in ranked(trials):
        name = f"**{trial.name}**" if trial is best else trial.name
        values = [_shown(trial.point.get(each)) for each in names]
        nelbo = "" if trial.nelbo is None else f"{trial.nelbo:.4f}"
        cost = [f"{trial.num_parameters:,}", f"{trial.cells_seen:,}", f"{trial.wall_s:.0f}"]
        rows.append([name, trial.state, *values, nelbo, *cost])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def note(trials: Sequence[Trial], search: Search, *, evaluated: str = "") -> str:
    """The parent run's note: what was searched, the choice, the trials, and how the best fares."""
    best, budget = winner(list(trials)), search.budget
    chosen = (
        f"Chosen by validation NELBO (nats per gene, lower is better): **{best.name}**, "
        f"{told(best.point)}."
        if best
        else "No trial has a validation NELBO, so nothing was chosen."
    )
    searched = (
        f"{len(trials)} trials, {search.searcher} search with seed {search.seed}, "
        f"{budget.per_trial or 0:,.0f} {budget.unit} each unless stopped early."
    )
    evaluation = f"The best, fitted again, against the held-out cells:\n\n{evaluated}"
    parts = [searched, chosen, as_markdown(trials), *([evaluation] if evaluated else [])]
    return "\n\n".join(parts)


def track_summary(run: "DriverRun", paths: Sequence[Path], trials: Sequence[Trial]) -> None:
    """Show the summary on the parent run, with the winner's numbers as its own."""
    for path in paths:
        run.log_artifacts(path, "figures" if path.suffix == ".png" else None)
    best = winner(list(trials))
    if best is None:
        return
    run.set_tags({"sedd.best_trial": best.name})
    run.log_metrics({
        "val/best_nelbo": float(best.nelbo or math.nan),
        "n_params": best.num_parameters,
        "trials": len(trials),
        "wall_s": sum(trial.wall_s for trial in trials),
    })  # fmt: skip


def final_numbers(trial: Trial) -> dict[str, float]:
    """A trial's numbers under the names by which runs are compared in MLflow."""
    numbers = {
        "n_params": float(trial.num_parameters),
        "cells_seen": float(trial.cells_seen),
        "wall_s": trial.wall_s,
    }
    return numbers if trial.nelbo is None else {**numbers, "val/best_nelbo": trial.nelbo}


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The chosen trial first, then by NELBO; those without one last."""
    best = winner(list(trials))

    def rank(trial: Trial) -> tuple[bool, float, str]:
        nelbo = math.inf if trial.nelbo is None else trial.nelbo
        return trial is not best, nelbo, trial.name

    return sorted(trials, key=rank)


def cost_figure(
    trials: Sequence[Trial], courses: Mapping[str, Sequence[tuple[float, float]]]
) -> "Figure":
    """Validation NELBO of the trials: on the way, by cells seen, and what it cost in seconds.

    Args:
        trials: With their numbers.
        courses: By trial, (cells seen, NELBO) at each validation.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    on_the_way, cost = figure.subplots(1, 2, sharey=True)
    best = winner(list(trials))
    for trial in trials:
        colour, width = ("#D55E00", 2.0) if trial is best else ("0.6", 0.9)
        if courses.get(trial.name):
            cells, nelbo = zip(*courses[trial.name], strict=True)
            on_the_way.plot(cells, nelbo, "-", color=colour, linewidth=width)
            on_the_way.plot(cells[-1:], nelbo[-1:], _marker(trial), color=colour, markersize=4)
        if trial.nelbo is not None:
            cost.plot(trial.wall_s, trial.nelbo, _marker(trial), color=colour)
            number = trial.name.removeprefix("trial_")
            label = f"{number}: {trial.num_parameters / 1e6:.2g} M"
            cost.annotate(
                label, (trial.wall_s, trial.nelbo), (4, 3), textcoords="offset points", fontsize=7
            )
    on_the_way.set(xlabel="cells seen", ylabel="validation NELBO (nats per gene)")
    cost.set(xlabel="seconds of training; o finished, x ended early")
    for axes in (on_the_way, cost):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _marker(trial: Trial) -> str:
    return "o" if trial.state == "finished" else "x"


def _course(folder: Path) -> list[tuple[float, float]]:
    points = read_journal(folder / FILE_NAME)
    return [
        (p.metrics["train/cells_seen"], p.metrics["val/nelbo"])
        for p in points
        if "val/nelbo" in p.metrics
    ]


def _names(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.point))


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')
