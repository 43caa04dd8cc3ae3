"""`python -m pipelines.tracking open|sync|serve`: the store, what it missed, a server for a lab."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.command_line import Parser, add_switch, entry, listed
from pipelines.tracking.faults import TrackingUnavailableError, redact
from pipelines.tracking.server import ServerSettings, serve
from pipelines.tracking.store import open_store
from pipelines.tracking.syncing import sync
from sedd.errors import StorageError


@entry
def main(argv: Sequence[str]) -> None:
    """Run one of the three commands."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "serve":
        serve(_server_settings(arguments))
        return
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


def _parser() -> Parser:
    parser = Parser(prog="python -m pipelines.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    opening = commands.add_parser("open", help="make the MLflow store and experiment if absent")
    copying = commands.add_parser("sync", help="send MLflow what it lacks of a folder's runs")
    copying.add_argument("--experiment_dir", required=True, help="the folder of a run or a sweep")
    for command in (opening, copying):
        command.add_argument("--tracking_uri", help="default: MLFLOW_TRACKING_URI")
    serving = commands.add_parser("serve", help="run an MLflow server for a lab")
    serving.add_argument(
        "--backend_store_uri",
        default=os.environ.get("MLFLOW_BACKEND_STORE_URI") or "sqlite:///mlflow.db",
        help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE "
        "(environment: MLFLOW_BACKEND_STORE_URI)",
    )
    serving.add_argument("--artifacts", default="mlartifacts", help="folder or s3://BUCKET/PATH")
    serving.add_argument("--auth_dir", default="mlflow_auth", help="private folder of users, keys")
    serving.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from elsewhere")
    serving.add_argument("--port", type=int, default=5000)
    serving.add_argument("--workers", type=int, default=1, help="processes")
    serving.add_argument(
        "--allowed_hosts", nargs="+", default=(), metavar="NAME", help="names clients may call"
    )
    add_switch(serving, "no_auth", help_text="let everybody in; on 127.0.0.1 alone")
    for command in (opening, copying, serving):
        command.add_argument("--debug", action="store_true", help="show the traceback")
    return parser


def _server_settings(arguments: argparse.Namespace) -> ServerSettings:
    return ServerSettings(
        backend_store_uri=arguments.backend_store_uri,
        artifacts=arguments.artifacts,
        auth_dir=Path(arguments.auth_dir).expanduser(),
        host=arguments.host,
        port=arguments.port,
        allowed_hosts=tuple(listed(arguments.allowed_hosts)),
        workers=arguments.workers,
        auth=not arguments.no_auth,
    )


if __name__ == "__main__":
    sys.exit(main())
