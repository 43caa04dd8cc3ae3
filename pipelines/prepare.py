"""`prepare`: h5ad to token shards as a step of its own; `train` finds them again."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line
from sedd.config import Config
from sedd.flags import FLAGS

DESCRIPTION = "Write the token shards that train reads; unchanged input is found again."


def run(config: Config) -> Path:
    """Folder of the shards for these cells and settings, made if it is not there."""
    from pipelines.experiment import load_cells, only_writer, shards_for, split_cells

    cells = load_cells(config)
    split = split_cells(config, cells)
    with only_writer(Path(config.experiment_dir), "train"):
        return shards_for(config, cells, split)


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, resolve, prepare."""
    parser = command_line.verb_parser("prepare", DESCRIPTION)
    command_line.add_config_flags(parser, FLAGS)
    config = command_line.read_config(parser.parse_args(argv), FLAGS)
    folder = run(config.with_absolute_paths(Path.cwd()))
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"prepared: {folder} ({megabytes:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
