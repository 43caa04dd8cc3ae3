"""`register`: an evaluated experiment in, a version of a registered model out, judged at the gate.

Every new version is the `challenger`. It becomes `champion` if it beats the additive baseline and
is not worse than the champion on the same evaluation set, or by `--force`. All judging comes
before anything is written, so that nothing is registered by half. `--rollback` gives the alias
back.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line
from sedd.errors import UsageError

if TYPE_CHECKING:
    from pipelines.bundle import Evaluated
    from pipelines.contest import Scores, Verdict
    from pipelines.tracking.logged_model import Description
    from pipelines.tracking.registry import Registry, Version
    from pipelines.tracking.store import RunRef

DESCRIPTION = "Register an evaluated experiment as a model version; roll back to an earlier one."
NAME = "sedd-perturbation"
PREVIOUS = "previous"
MAX_DESCRIPTION = 5000
"""Characters; a registry in PostgreSQL refuses more."""
HELD_OUT_TAG = 20
"""Held-out conditions that are named in a tag."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A new version, and what the gate said of it."""

    version: "Version"
    verdict: "Verdict"
    promoted: bool
    forced: bool


def run(
    folder: Path, name: str = NAME, *, force: bool = False, tracking_uri: str | None = None
) -> Registered:
    """Judge, log and register the model of an experiment.

    Raises:
        UsageError: The name cannot be one, or the folder is not evaluated as it stands.
        StorageError: MLflow does not answer, or is of another version.
    """
    from pipelines.bundle import open_evaluated
    from pipelines.gate import judge_against
    from pipelines.tracking.reach import reachable
    from pipelines.tracking.registry import require_name

    require_name(name)
    candidate = open_evaluated(folder)
    run_ref, registry = _open(candidate, name, tracking_uri)
    with reachable(registry.store.tracking_uri):
        champion = registry.champion()
        verdict = judge_against(candidate, champion, registry)
        return _write(candidate, run_ref, registry, (champion, verdict), force=force)


def roll_back(which: str | None, name: str = NAME, *, tracking_uri: str | None = None) -> str:
    """Give the alias `champion` back; returns what was done, in a sentence.

    Args:
        which: A version or alias; None is the champion before this one.
        name: Of the registered model.
        tracking_uri: The store; MLFLOW_TRACKING_URI or ./mlflow.db if not given.

    Raises:
        UsageError: There is no such version, or no champion before this one.
    """
    from pipelines.tracking import open_store
    from pipelines.tracking.reach import reachable
    from pipelines.tracking.registry import Registry, require_name
    from pipelines.tracking.store import resolve_uri

    require_name(name)
    with reachable(resolve_uri(tracking_uri)):
        registry = Registry(open_store(tracking_uri), name)
        with registry.one_at_a_time():
            done = registry.roll_back(which)
    before = f", no longer version {done.before.number}" if done.before else ""
    return f"{name}: champion is version {done.after.number}{before}"


def _open(candidate: "Evaluated", name: str, tracking_uri: str | None) -> "tuple[RunRef, Registry]":
    """The experiment's training run and the registry; neither is changed.

    Raises:
        UsageError: MLflow does not know the experiment.
    """
    from pipelines.tracking import open_store
    from pipelines.tracking.logged_model import training_run
    from pipelines.tracking.reach import reachable
    from pipelines.tracking.registry import Registry
    from pipelines.tracking.store import redact, resolve_uri

    with reachable(resolve_uri(tracking_uri)):
        store = open_store(tracking_uri)
        found = training_run(store, candidate.folder)
    if found is None:
        message = (
            f"MLflow at {redact(store.tracking_uri)} holds no training run of {candidate.folder}. "
            "Name the store that it was trained with in MLFLOW_TRACKING_URI, or copy the run "
            "there: python -m pipelines.tracking sync --experiment_dir "
            f"{shlex.quote(str(candidate.folder))}."
        )
        raise UsageError(message)
    return found, Registry(store, name)


def _write(
    candidate: "Evaluated",
    run_ref: "RunRef",
    registry: "Registry",
    judged: "tuple[Version | None, Verdict]",
    *,
    force: bool,
) -> Registered:
    """Log the model, make the version and set the aliases; judge again if the champion changed."""
    from pipelines.bundle import write_bundle
    from pipelines.gate import judge_against
    from pipelines.tracking import logged_model
    from pipelines.tracking.registry import Entry

    champion, verdict = judged
    facts = _facts(candidate, run_ref)
    with tempfile.TemporaryDirectory(prefix="sedd-bundle-") as work:
        bundle = Path(work) / "experiment"
        write_bundle(candidate, bundle)
        model_id = logged_model.log_model(run_ref, _describe(candidate, bundle, facts))
    try:
        with registry.one_at_a_time():
            now = registry.champion()
            if (now and now.number) != (champion and champion.number):
                verdict = judge_against(candidate, now, registry)
            promoted = verdict.promoted or force
            tags = facts | _decision(verdict, now, force=force)
            card = (candidate.evaluation / "model_card.md").read_text(encoding="utf-8")
            entry = Entry(run_id=run_ref.run_id, tags=tags, description=shortened(card))
            version = registry.add(model_id, entry, crowned=promoted)
    except BaseException:
        logged_model.forget_model(run_ref, model_id)
        raise
    return Registered(version=version, verdict=verdict, promoted=promoted, forced=force)


def shortened(card: str, limit: int = MAX_DESCRIPTION) -> str:
    """The card, cut after a whole line if it is too long for a description."""
    if len(card) <= limit:
        return card
    rest = "\n\n… the whole card is among the model's files: artifacts/experiment/evaluation."
    return card[: limit - len(rest)].rsplit("\n", 1)[0] + rest


def _describe(candidate: "Evaluated", bundle: Path, facts: Mapping[str, str]) -> "Description":
    import yaml

    from pipelines.evaluation_record import read_scores
    from pipelines.tracking.facts import flat_params
    from pipelines.tracking.logged_model import Description
    from sedd.data.reference import Reference

    config, vocabulary = candidate.config, candidate.vocabulary
    methods = read_scores(candidate.evaluation)
    data = Path(config.data.train_data_path or "cells").name
    reference = Reference.load(candidate.source.checkpoint)
    return Description(
        bundle=bundle,
        cell_types=vocabulary.cell_types,
        perturbations=vocabulary.perturbations,
        genes=vocabulary.genes,
        kind=reference.tokenizer.kind,
        inference=candidate.record.inference,
        tags=facts,
        params=flat_params(yaml.safe_load(config.to_yaml())),
        metrics=_metrics(methods, candidate.record.mode),
        dataset=(data, candidate.record.data_digest),
    )


def _facts(candidate: "Evaluated", run_ref: "RunRef") -> dict[str, str]:
    """What the model is and what it was judged on, as tags."""
    from pipelines.tracking import git_commit
    from pipelines.tracking.store import connect
    from sedd.data.splits import Split

    trained_by = connect(run_ref.tracking_uri).get_run(run_ref.run_id).data.tags
    held_out = Split.load(candidate.folder / "split.json").held_out
    return {
        "sedd.model_digest": candidate.source.digest,
        "sedd.dataset_digest": candidate.record.data_digest,
        "sedd.split_hash": candidate.record.split_digest,
        "sedd.held_out": ", ".join(f"{t} × {p}" for t, p in held_out[:HELD_OUT_TAG]),
        "sedd.mode": candidate.record.mode,
        "sedd.experiment": candidate.folder.name,
        "sedd.git_commit": trained_by.get("mlflow.source.git.commit", "unknown"),
        "sedd.registered_by_commit": git_commit() or "unknown",
    }


def _decision(verdict: "Verdict", champion: "Version | None", *, force: bool) -> dict[str, str]:
    """The gate's decision with its numbers, as tags."""
    return {
        "gate.decision": "champion" if verdict.promoted or force else "challenger",
        "gate.passed": str(verdict.promoted).lower(),
        "gate.forced": str(force).lower(),
        "gate.reason": verdict.sentence,
        "gate.champion_version": str(champion.number) if champion else "none",
        **{f"gate.{name}": f"{value:.6g}" for name, value in verdict.numbers.items()},
    }


def _metrics(methods: Mapping[str, "Scores"], mode: str) -> dict[str, float]:
    """Means over conditions under the names of `evaluate`: the model's own, and each method's."""
    import numpy as np

    found = {}
    for method, scores in methods.items():
        for key, by_condition in scores.items():
            values = [score.estimate for score in by_condition.values()]
            if np.isfinite(values).any():
                found[f"eval/{method}/{key}"] = float(np.nanmean(values))
    own = {f"eval/{key}": found.get(f"eval/{mode}/{key}") for key in methods.get(mode, {})}
    return found | {key: value for key, value in own.items() if value is not None}


def _report(done: Registered) -> str:
    version, verdict = done.version, done.verdict
    lines = [f"{version.name}: version {version.number} ({version.uri}) is the challenger"]
    if done.promoted and not verdict.promoted:
        lines.append(f"forced to be champion; the gate said no: {verdict.sentence}")
    elif done.promoted:
        lines.append(f"and the champion: {verdict.sentence}")
    else:
        lines.append(f"not champion: {verdict.sentence}")
        lines.append("--force makes it the champion all the same.")
    return "\n".join(lines)


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, then register or roll back."""
    parser = command_line.verb_parser("register", DESCRIPTION)
    parser.add_argument("--experiment_dir", help="the evaluated experiment (EXPERIMENT_DIR)")
    parser.add_argument("--name", help=f"of the registered model; default: {NAME}")
    command_line.add_switch(
        parser, "force", help_text="make it the champion whatever the gate says; is recorded"
    )
    parser.add_argument(
        "--rollback",
        nargs="?",
        const=PREVIOUS,
        metavar="VERSION",
        help="register nothing: give `champion` back to the one before, or to a version or alias",
    )
    arguments = parser.parse_args(argv)
    name = arguments.name or NAME
    if arguments.rollback:
        if arguments.experiment_dir or arguments.force:
            message = "--rollback registers nothing: leave out --experiment_dir and --force."
            raise UsageError(message)
        which = None if arguments.rollback == PREVIOUS else arguments.rollback
        print(roll_back(which, name))
        return 0
    folder = arguments.experiment_dir or os.environ.get("EXPERIMENT_DIR")
    if not folder:
        message = "No experiment was named. Give the evaluated one with --experiment_dir."
        raise UsageError(message)
    print(_report(run(Path(folder).expanduser().resolve(), name, force=arguments.force)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
