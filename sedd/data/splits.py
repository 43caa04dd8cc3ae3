"""Which cells train, which validate, and which are held out to be predicted.

Four named kinds. Held-out cells are always *perturbed* ones: the controls of every cell type are
there for training, because they are what the model knows a cell type by.

    unseen_cell_type     perturbed cells of the given types are held out
    unseen_pair          perturbed cells of the given (cell type, perturbation) pairs
    unseen_perturbation  cells of the given perturbations, in all types
    random_cells         a random share of each perturbed condition (an upper bound, not a test of
                         generalisation)
    none                 nothing is held out
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from sedd.data.vocabulary import unknown_names_message
from sedd.errors import ConfigError, DataError, UsageError

SplitKind = Literal[
    "random_cells", "unseen_cell_type", "unseen_pair", "unseen_perturbation", "none"
]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What is held out."""

    __pydantic_config__ = {"extra": "forbid"}

    kind: SplitKind = "none"
    """One of random_cells, unseen_cell_type, unseen_pair, unseen_perturbation, none."""
    cell_types: tuple[str, ...] = ()
    """Cell types to hold out (unseen_cell_type)."""
    perturbations: tuple[str, ...] = ()
    """Perturbations to hold out (unseen_perturbation)."""
    pairs: tuple[tuple[str, str], ...] = ()
    """(cell type, perturbation) pairs to hold out (unseen_pair)."""
    test_fraction: float = 0.2
    """Share of each perturbed condition to hold out (random_cells)."""
    validation_fraction: float = 0.05
    """Share of each training condition kept back to choose the best step."""
    seed: int = 0
    """Seed of the random choices."""

    def __post_init__(self) -> None:
        """Raise ConfigError where kind and lists contradict each other."""
        problems = []
        wanted = {
            "unseen_cell_type": "cell_types",
            "unseen_perturbation": "perturbations",
            "unseen_pair": "pairs",
        }
        for kind, name in wanted.items():
            given = len(getattr(self, name)) > 0
            if (kind == self.kind) != given:
                problems.append(
                    f"split.kind is {self.kind!r} and split.{name} is {getattr(self, name)!r}, "
                    f"but split.{name} belongs to split.kind={kind!r}: set both or neither."
                )
        for name in ("test_fraction", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"split.{name} is {getattr(self, name)}, wanted 0 <= x < 1.")
        if problems:
            raise ConfigError("\n  ".join(problems))


@dataclass(frozen=True)
class Split:
    """Rows of the input file by role, and the held-out conditions as (cell type, perturbation)."""

    kind: str
    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    test: Int[np.ndarray, " test"]
    held_out: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """Hash of every row's role and of the held-out conditions."""
        digest = hashlib.sha256(json.dumps([self.kind, self.held_out]).encode())
        for rows in (self.train, self.validation, self.test):
            digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes() + b"|")
        return digest.hexdigest()

    def save(self, path: Path, *, data_digest: str) -> None:
        """Write `split.json`: rows, held-out conditions and the hashes of split and data."""
        content = {
            "kind": self.kind,
            "digest": self.digest,
            "data_digest": data_digest,
            "held_out": self.held_out,
            **{role: getattr(self, role).tolist() for role in ("test", "validation", "train")},
        }
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path, *, data_digest: str | None = None) -> "Split":
        """Read `split.json`; DataError if its hash, or that of the data, does not agree."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = {k: np.asarray(content[k], np.int64) for k in ("train", "validation", "test")}
            held_out = tuple((cell_type, name) for cell_type, name in content["held_out"])
            split = cls(content["kind"], held_out=held_out, **rows)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a split this program wrote: {error}.") from error
        if split.digest != content.get("digest"):
            raise DataError(f"{path} was changed after it was written; its hash does not agree.")
        if data_digest not in (None, content.get("data_digest")):
            raise DataError(
                f"{path} was made for other data (digest {content.get('data_digest')}, these have "
                f"{data_digest}). Use the h5ad the experiment was trained on."
            )
        return split


def make_split(
    config: SplitConfig,
    *,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    control_name: str,
) -> Split:
    """Assign every row a role.

    Args:
        config: What to hold out.
        perturbation: Label of each cell.
        cell_type: Label of each cell.
        control_name: Label of unperturbed cells; they are never held out.

    Raises:
        UsageError: A label to hold out does not occur.
        DataError: Nothing is left to train on, something to hold out has no perturbed cell, or a
            held-out cell type has no control cell to predict from.
    """
    rng = np.random.default_rng(config.seed)
    treated = perturbation != control_name
    test = _held_out(config, perturbation, cell_type, treated, rng)
    rest = ~test
    validation = rest & _share_of_each_condition(
        config.validation_fraction, perturbation, cell_type, rest, rng
    )
    train = rest & ~validation
    if config.kind != "none":
        _require_held_out(config, perturbation, cell_type, test)
        _require_controls(set(cell_type[test]), set(cell_type[~treated]), control_name)
    if not (train & treated).any():
        raise DataError(
            "The split leaves no perturbed cell to train on. Hold out fewer cell types, "
            "perturbations or pairs."
        )
    conditions = sorted(
        {(str(t), str(p)) for t, p in zip(cell_type[test], perturbation[test], strict=True)}
    )
    return Split(
        config.kind,
        train=np.flatnonzero(train),
        validation=np.flatnonzero(validation),
        test=np.flatnonzero(test),
        held_out=tuple(conditions),
    )


def _held_out(
    config: SplitConfig,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    treated: Bool[np.ndarray, " cells"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, " cells"]:
    if config.kind == "none":
        return np.zeros(len(treated), bool)
    if config.kind == "unseen_cell_type":
        _check_known(config.cell_types, cell_type, "cell type in split.cell_types")
        return treated & np.isin(cell_type, config.cell_types)
    if config.kind == "unseen_perturbation":
        known = perturbation[treated]
        _check_known(config.perturbations, known, "perturbation in split.perturbations")
        return treated & np.isin(perturbation, config.perturbations)
    if config.kind == "unseen_pair":
        _check_known([pair[0] for pair in config.pairs], cell_type, "cell type in split.pairs")
        _check_known(
            [pair[1] for pair in config.pairs], perturbation[treated], "perturbation in split.pairs"
        )
        wanted = set(config.pairs)
        pairs = zip(cell_type, perturbation, strict=True)
        return treated & np.fromiter((pair in wanted for pair in pairs), bool, len(treated))
    return _share_of_each_condition(config.test_fraction, perturbation, cell_type, treated, rng)


def _require_held_out(
    config: SplitConfig,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    test: Bool[np.ndarray, " cells"],
) -> None:
    """Refuse a fold without cells: a type, perturbation or pair that holds nothing out."""
    held = {
        "unseen_cell_type": (config.cell_types, set(cell_type[test])),
        "unseen_perturbation": (config.perturbations, set(perturbation[test])),
        "unseen_pair": (config.pairs, set(zip(cell_type[test], perturbation[test], strict=True))),
    }
    named, found = held.get(config.kind, ((), set()))
    empty = [name for name in named if name not in found]
    if empty:
        message = (
            f"split.kind={config.kind!r}: no perturbed cell of {empty[:3]} is in these data, so "
            f"there would be nothing to predict ({len(empty)} of {len(named)} named). Take them "
            "out of the list, or add their cells."
        )
        raise DataError(message)
    if not test.any():
        message = (
            f"split.kind={config.kind!r} holds out no cell of these data: "
            f"split.test_fraction={config.test_fraction} of the cells of each condition, rounded "
            "down, is none. Raise it."
        )
        raise DataError(message)


def _require_controls(held_out: set[str], with_controls: set[str], control_name: str) -> None:
    """Refuse to hold out cells of types that could not be predicted for want of controls."""
    without = sorted(held_out - with_controls)
    if without:
        message = (
            f"Cells of {without[:3]} are held out, but {len(without)} held-out cell types have no "
            f"control cell to predict from. Add {control_name!r} cells of these types, or hold "
            "out others."
        )
        raise DataError(message)


def _share_of_each_condition(
    fraction: float,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    among: Bool[np.ndarray, " cells"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, " cells"]:
    """Mark a random share, rounded down, of each (cell type, perturbation)."""
    chosen = np.zeros(len(among), bool)
    for condition in sorted(set(zip(cell_type[among], perturbation[among], strict=True))):
        rows = np.flatnonzero(among & (cell_type == condition[0]) & (perturbation == condition[1]))
        chosen[rng.permutation(rows)[: int(fraction * len(rows))]] = True
    return chosen


def _check_known(wanted: "tuple[str, ...] | list[str]", labels: np.ndarray, what: str) -> None:
    known = sorted(set(labels))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(unknown_names_message(unknown, known, what))
