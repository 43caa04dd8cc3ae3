"""Train, generate and score every fold, seed and variant of a study.

    python -m benchmarks.quality benchmarks/configs/quality_kang.yaml --data_dir FOLDER

A job is a trained model and the cells it generates; both are kept under --work_dir, with the
scores, so that a run that was cut off goes on where it stopped, over several sittings if need be
(--max_minutes starts no new job after that long). Jobs that differ in `inference` alone share the
trained model; scores that other sources made are made anew. Prints the table of all that is scored
and, when everything is done, writes it to benchmarks/results/DATE-STUDY.md; each job becomes an
MLflow run of the experiment `quality`.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.quality_job import predict
from benchmarks.quality_judges import judge_job
from benchmarks.quality_results import is_judged, is_scored, read_results
from benchmarks.quality_score import score_job
from benchmarks.quality_study import ROOT, Job, Study, configure, load_job_cells, plan, read_study
from benchmarks.quality_table import to_markdown
from benchmarks.quality_targets import require_targets
from benchmarks.quality_tracking import track_job
from benchmarks.quality_vectors import with_readable_vectors
from pipelines.command_line import Parser, entry
from pipelines.judging import require_judgeable
from sedd.errors import Preempted, UsageError
from sedd.evaluation.judges import JUDGES
from sedd.storage import write_text


@dataclass(frozen=True)
class Task:
    """A job, where it and trained models are kept, and what is scored beside the model.

    Attributes:
        job: What to predict.
        folder: Where cells and scores are kept.
        models: Folder of trained models.
        baselines: Whether the baselines are scored too.
        judges: Whether the field's judges are asked about all of them.
    """

    job: Job
    folder: Path
    models: Path
    baselines: bool
    judges: bool

    @property
    def scored(self) -> bool:
        """Whether its scores are there, by the sources of now, with the baselines if asked for."""
        return is_scored(self.folder, baselines=self.baselines)

    @property
    def done(self) -> bool:
        """Whether all that was asked of it is there."""
        return self.scored and (not self.judges or is_judged(self.folder))


@entry
def main(argv: Sequence[str]) -> int:
    """Run a study as far as time allows and print its table."""
    arguments = _parser().parse_args(argv)
    study = read_study(arguments.study)
    require_targets(study)
    if not arguments.data_dir.is_dir():
        raise UsageError(
            f"--data_dir {arguments.data_dir} is no folder. Name the one that holds "
            f"{study.config.get('data', {}).get('train_data_path')}."
        )
    tasks = list(_tasks(study, arguments))
    waiting = [task for task in tasks if not task.done]
    print(f"{study.name}: {len(tasks)} jobs, {len(tasks) - len(waiting)} done before")
    _run(waiting, arguments.processes, arguments.max_minutes, arguments.tracking_uri)
    scored = [task.folder for task in tasks if task.scored]
    if not scored:
        print("nothing is scored yet")
        return 1
    num_done = sum(task.done for task in tasks)
    command = f"python -m benchmarks.quality {arguments.study} --data_dir DATA"
    command += " --judges" * arguments.judges
    page = to_markdown(study, read_results(scored), command=command)
    if num_done == len(tasks):
        path = ROOT / "benchmarks" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{study.name}.md"
        write_text(path, page)
    print(page)
    print(f"{num_done} of {len(tasks)} jobs done")
    return 0 if num_done == len(tasks) else Preempted.exit_code


def _tasks(study: Study, arguments: argparse.Namespace) -> Iterator[Task]:
    """Jobs by their folder; the first of each fold carries the baselines."""
    first = configure(
        study, next(iter(study.variants)), seed=study.seeds[0], data_dir=arguments.data_dir
    )
    cells = load_job_cells(first, study.only, study.merged)
    require_judgeable(JUDGES if arguments.judges else (), cells.kind)
    seen: set[tuple[tuple[str, str], ...]] = set()
    for planned in plan(study, cells, arguments.data_dir):
        job = with_readable_vectors(planned, cells, arguments.work_dir / "vectors")
        key = job.key(cells.source.digest)
        name = f"{job.variant}-{job.fold}-{job.seed}".replace("/", "_").replace(" ", "_")
        folder = arguments.work_dir / study.name / f"{name}-{key}"
        models = arguments.work_dir / "trained"
        leads = job.conditions not in seen
        yield Task(job, folder, models, baselines=leads, judges=leads and arguments.judges)
        seen.add(job.conditions)


def _run(
    tasks: Sequence[Task], processes: int, max_minutes: float | None, tracking_uri: str | None
) -> None:
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    remaining = list(tasks)
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        running: dict[Future[None], Task] = {}
        while remaining or running:
            while remaining and len(running) < processes:
                if max_minutes is not None and time.monotonic() - started > 60 * max_minutes:
                    remaining.clear()
                    break
                task = remaining.pop(0)
                running[pool.submit(_work, task)] = task
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                task = running.pop(future)
                future.result()
                minutes = (time.monotonic() - started) / 60
                print(f"{minutes:6.1f} min  {task.folder.name}", flush=True)
                track_job(task.folder, tracking_uri)


def _work(task: Task) -> None:
    if not (task.folder / "facts.json").is_file():
        predict(task.job, task.folder, task.models)
    if not task.scored:
        score_job(task.folder, baselines=task.baselines)
    if not task.done:
        judge_job(task.folder)


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("study", type=Path, help="YAML file of benchmarks/configs")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the h5ad files")
    parser.add_argument("--work_dir", type=Path, default=Path("experiments/quality"))
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time")
    parser.add_argument("--max_minutes", type=float, help="start no job after that long")
    parser.add_argument(
        "--judges", action="store_true", help="ask cell-eval and cell-eval2 too (extra `eval`)"
    )
    parser.add_argument("--tracking_uri", help="MLflow server or database")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
