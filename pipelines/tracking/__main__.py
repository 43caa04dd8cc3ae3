"""`python -m pipelines.tracking open|sync`: make the store; copy a journal that MLflow missed."""

import sys
from collections.abc import Sequence

from pipelines.command_line import Parser, entry
from pipelines.tracking.faults import TrackingUnavailableError, redact
from pipelines.tracking.store import open_store
from pipelines.tracking.syncing import sync
from sedd.errors import StorageError


@entry
def main(argv: Sequence[str]) -> None:
    """Run one of the two commands."""
    parser = Parser(prog="python -m pipelines.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    opening = commands.add_parser("open", help="make the MLflow store and experiment if absent")
    copying = commands.add_parser("sync", help="send MLflow the journal's points that it lacks")
    copying.add_argument("--experiment_dir", required=True, help="the run's folder")
    for command in (opening, copying):
        command.add_argument("--tracking_uri", help="default: MLFLOW_TRACKING_URI")
        command.add_argument("--debug", action="store_true", help="show the traceback")
    arguments = parser.parse_args(argv)

    try:
        if arguments.command == "open":
            store = open_store(arguments.tracking_uri)
            print(f"MLflow store {redact(store.tracking_uri)}, experiment {store.experiment!r}")
            return
        report = sync(arguments.experiment_dir, tracking_uri=arguments.tracking_uri)
    except TrackingUnavailableError as error:
        message = f"MLflow does not answer: {error}. Nothing is lost; run this again later."
        raise StorageError(message) from error
    where = f"run {report.run_id}"
    if report.runs > 1:
        where += f" and {report.runs - 1} more"
    print(f"{report.sent} of {report.points} metric values sent to {where}; the others were there")


if __name__ == "__main__":
    sys.exit(main())
