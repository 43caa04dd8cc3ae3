"""What every verb's command line has in common: flags, messages, exit codes.

Nothing here imports more than the standard library, so that `--help` answers at once.
"""

import argparse
import difflib
import functools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from pipelines.signals import Terminated
from sedd.errors import SeddError, StorageError, UsageError

if TYPE_CHECKING:
    from sedd.config import Config

BROKEN_PIPE = 128 + signal.SIGPIPE


class Flag(Protocol):
    """A flag that stands for a key of the config; `sedd.flags.FLAGS` holds them."""

    @property
    def name(self) -> str:
        """The flag without its dashes."""
        ...

    @property
    def key(self) -> str:
        """The key of the config that it sets, `section.name`."""
        ...

    @property
    def help(self) -> str:
        """One line for `--help`."""
        ...

    @property
    def env(self) -> str | None:
        """The environment variable that sets the same key."""
        ...

    @property
    def nargs(self) -> str | None:
        """How many values argparse takes; None for one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command line says about the config; what it leaves open is absent."""

    config: str | None
    flags: dict[str, str | list[str]]
    settings: tuple[str, ...]


class Entry(Protocol):
    """A verb's main: returns the exit code, reads sys.argv unless given arguments."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the verb."""
        ...


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one message, with the nearest flag's name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError instead of leaving the process."""
        known = [option for action in self._actions for option in action.option_strings]
        nearest = [
            near[0]
            for word in re.findall(r"(?<!\S)--[\w-]+", message)
            if word not in known
            and (near := difflib.get_close_matches(word.replace("-", "_"), known, n=1, cutoff=0.6))
        ]
        hint = f" Did you mean {', '.join(nearest)}?" if nearest else ""
        text = f"{message}.{hint} `{self.prog} --help` lists the flags."
        raise UsageError(text)


def verb_parser(verb: str, description: str) -> Parser:
    """The parser of a verb, with `--debug`."""
    parser = Parser(prog=f"python -m pipelines.{verb}", description=description)
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error, not only its message"
    )
    return parser


def add_config_flags(parser: argparse.ArgumentParser, flags: Iterable[Flag]) -> None:
    """Add `--config`, `--set` and the flags that stand for keys of the config."""
    group = parser.add_argument_group(
        "configuration", "A flag beats its environment variable, which beats the file."
    )
    group.add_argument("--config", metavar="FILE", help="YAML file (environment: CONFIG)")
    group.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="any other value of the config, e.g. --set model.dropout=0.1; may be repeated",
    )
    for flag in flags:
        source = f" (environment: {flag.env})" if flag.env else ""
        group.add_argument(
            f"--{flag.name}",
            nargs=flag.nargs,
            metavar="VALUE",
            help=f"{flag.help} [{flag.key}]{source}".replace("%", "%%"),
        )


def add_switch(parser: argparse.ArgumentParser, name: str, *, help_text: str) -> None:
    """Add a flag that is on when it stands alone or is "true"; empty counts as not given."""
    parser.add_argument(
        f"--{name}",
        nargs="?",
        const=True,
        default=False,
        type=_switch,
        metavar="true|false",
        help=help_text,
    )


def given(arguments: argparse.Namespace, flags: Iterable[Flag]) -> Given:
    """What was given of the config's flags.

    Empty text counts as not given: `mlflow run` passes every parameter of an entry point, and
    those that the user left out are empty. For the same reason a flag of several values may come
    as one YAML list, `["T cell", "B cell"]`, and one `--set` may hold several settings, separated
    by `;` before the next `section.key=`.
    """
    values: dict[str, str | list[str]] = {}
    for flag in flags:
        value = getattr(arguments, flag.name, None)
        if isinstance(value, list):
            value = listed(value)
        if value:
            values[flag.name] = value
    settings = tuple(
        setting.strip()
        for text in arguments.settings
        for setting in re.split(r";\s*(?=\w+(?:\.\w+)+\s*=)", text)
        if setting.strip()
    )
    return Given(config=arguments.config or None, flags=values, settings=settings)


def config_file(said: Given) -> Path | None:
    """The YAML file in force: `--config`, else the environment's CONFIG, else none."""
    name = said.config or os.environ.get("CONFIG")
    return Path(name).expanduser() if name else None


def read_config(
    arguments: argparse.Namespace, flags: Iterable[Flag], *, base: "Config | None" = None
) -> "Config":
    """The resolved config of a verb: flags, environment and file, in that order of weight.

    Args:
        arguments: What the verb's parser found.
        flags: Those that were added to the parser.
        base: The config to start from, instead of the defaults.
    """
    from sedd.config import resolve

    said = given(arguments, flags)
    return resolve(
        file=config_file(said),
        environment=os.environ,
        flags=said.flags,
        settings=said.settings,
        base=base,
    )


def entry(main: Callable[[Sequence[str]], int | None]) -> Entry:
    """Turn a verb's main into one that returns an exit code and prints errors as messages.

    A `SeddError`, wherever Ray has wrapped it, becomes one message and its exit code; a full disk
    or a missing file 74; Ctrl-C 130; SIGTERM 143; a reader of our output that went away, nothing.
    Any other exception is a bug of ours and keeps its traceback, as does every error with
    `--debug`.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        arguments = sys.argv[1:] if argv is None else list(argv)
        try:
            code = main(arguments) or 0
            sys.stdout.flush()
        except Terminated:
            warn("terminated.")
            return Terminated.exit_code
        except KeyboardInterrupt:
            warn("interrupted.")
            return 128 + signal.SIGINT
        except BrokenPipeError:
            return BROKEN_PIPE
        except Exception as error:
            mendable = find_mendable(error)
            if mendable is None:
                raise
            if "--debug" in arguments:
                traceback.print_exception(error)
            sys.stderr.write(f"error: {mendable}\n")
            return mendable.exit_code
        return code

    return run


def find_mendable(error: BaseException) -> SeddError | None:
    """The error that a user can mend inside this one, if there is one.

    Looks through causes, and through what Ray makes of an exception in a worker
    (`RayTaskError.cause`, `WorkerGroupError.worker_failures`).
    """
    seen: set[int] = set()
    queue: list[tuple[object, bool]] = [(error, True)]
    while queue:
        candidate, raised = queue.pop(0)
        if id(candidate) in seen or not isinstance(candidate, BaseException):
            continue
        seen.add(id(candidate))
        if isinstance(candidate, SeddError):
            return candidate
        if raised and isinstance(candidate, OSError) and candidate.errno is not None:
            return StorageError(_describe(candidate))
        failures = dict(getattr(candidate, "worker_failures", None) or {}).values()
        queue += [(inner, True) for inner in (getattr(candidate, "cause", None), *failures)]
        queue.append((candidate.__cause__, False))
    return None


def warn(message: str) -> None:
    """Tell the user something on stderr, without stopping."""
    sys.stderr.write(f"warning: {message}\n")
    sys.stderr.flush()


def listed(values: Iterable[str]) -> list[str]:
    """The values that are not empty, or those of the YAML list that the only one is."""
    items = [value for value in values if value.strip()]
    if len(items) != 1 or not items[0].lstrip().startswith("["):
        return items
    import yaml

    try:
        inner = yaml.safe_load(items[0])
    except yaml.YAMLError:
        return items
    return [str(item) for item in inner]


def _switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("", "true", "false"):
        message = f"invalid value {text!r}, wanted true or false"
        raise argparse.ArgumentTypeError(message)
    return word == "true"


def _describe(error: OSError) -> str:
    files = [str(name) for name in (error.filename, error.filename2) if name]
    return f"{error.strerror}: {' -> '.join(files)}." if files else f"{error.strerror}."
