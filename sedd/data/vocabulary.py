"""Names to numbers: genes, perturbations, cell types, batches of one model, in a fixed order."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from sedd.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class Parts:
    """The single perturbations that all perturbations are made of."""

    names: tuple[str, ...]
    """Control first, the others sorted."""
    of: Int[np.ndarray, "perturbations most"]
    """Numbers in `names` of the parts of each perturbation; -1 where it has fewer."""


@dataclass(frozen=True)
class Vocabulary:
    """Labels in the order of their numbers; control is always perturbation 0."""

    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    cell_types: tuple[str, ...]
    separator: str | None = None
    """Joins the names of perturbations applied together, as in A+B."""
    batches: tuple[str, ...] = ()
    """Batches (donors, plates) of the training cells; none where no column names them."""

    @property
    def control_name(self) -> str:
        """The label of unperturbed cells."""
        return self.perturbations[0]

    @classmethod
    def of(
        cls,
        *,
        genes: Sequence[str],
        perturbations: Iterable[str],
        cell_types: Iterable[str],
        control_name: str,
        separator: str | None = None,
        batches: Iterable[str] = (),
    ) -> "Vocabulary":
        """Sort the labels that occur; put control first."""
        treated = sorted(set(perturbations) - {control_name})
        cell_types = tuple(sorted(set(cell_types)))
        batches = tuple(sorted(set(batches)))
        return cls(tuple(genes), (control_name, *treated), cell_types, separator, batches)

    def perturbation_ids(self, labels: Iterable[str]) -> Int[np.ndarray, " labels"]:
        """Number of each perturbation; UsageError with the nearest names if one is unknown."""
        return _numbers(labels, self.perturbations, "perturbation")

    def cell_type_ids(self, labels: Iterable[str]) -> Int[np.ndarray, " labels"]:
        """Number of each cell type; UsageError with the nearest names if one is unknown."""
        return _numbers(labels, self.cell_types, "cell type")

    def batch_ids(self, labels: Iterable[str | None]) -> Int[np.ndarray, " labels"]:
        """Number of each batch; the number of batches, "not told", for None and unknown ones."""
        number: dict[str | None, int] = {name: index for index, name in enumerate(self.batches)}
        return np.array([number.get(name, len(number)) for name in labels], dtype=np.int64)

    def combinations(self) -> dict[int, tuple[int, ...]]:
        """Numbers of the parts of each perturbation that joins others, such as "A+B".

        Only names all of whose parts are perturbations of this vocabulary (or the control, which
        adds nothing) count; a drug that happens to be called "Ca2+" is not a combination.
        """
        number = {name: index for index, name in enumerate(self.perturbations)}
        found = {}
        for index, name in enumerate(self.perturbations[1:], start=1):
            parts = _split(name, self.separator)
            if len(parts) > 1 and all(part in number for part in parts):
                found[index] = tuple(number[part] for part in parts if number[part])
        return found

    def parts(self) -> "Parts":
        """What each perturbation is made of: "A+B" of A and B, any other name of itself alone.

        A name is a combination if the separator leaves at least two parts and none of them empty
        ("Ca2+" is none). Control is made of itself, and adds nothing to a combination.
        """
        treated = [_split(name, self.separator) for name in self.perturbations[1:]]
        treated = [tuple(p for p in parts if p != self.control_name) or parts for parts in treated]
        split = [(self.control_name,), *treated]
        single = {part for parts in split for part in parts} - {self.control_name}
        names = (self.control_name, *sorted(single))
        number = {name: index for index, name in enumerate(names)}
        of = np.full((len(split), max(map(len, split))), -1, np.int64)
        for row, parts in zip(of, split, strict=True):
            row[: len(parts)] = [number[part] for part in parts]
        return Parts(names, of)

    def to_json(self) -> str:
        """Text that `from_json` reads back."""
        content = asdict(self)
        if not self.batches:
            del content["batches"]
        return json.dumps(content, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Read what `to_json` wrote; DataError if it is something else."""
        try:
            content = json.loads(text)
            separator = content.pop("separator", None)
            return cls(**{key: tuple(value) for key, value in content.items()}, separator=separator)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"This is not a vocabulary: {error}.") from error

    def save(self, path: Path) -> None:
        """Write `vocabulary.json`."""
        path.write_text(self.to_json(), encoding="utf-8")


def _split(name: str, separator: str | None) -> tuple[str, ...]:
    parts = [part.strip() for part in name.split(separator)] if separator else [name]
    return tuple(parts) if len(parts) > 1 and all(parts) else (name,)


def unknown_names_message(unknown: Sequence[str], known: Sequence[str], what: str) -> str:
    """One sentence that names the unknown labels, their nearest neighbours and the valid ones."""
    hints = []
    for name in unknown[:3]:
        near = [k for k in known if k.casefold() == name.casefold()]
        near += [k for k in difflib.get_close_matches(name, known, cutoff=0.5) if k not in near]
        near = near[:2]
        hints.append(
            f"{name!r}" + (f" (did you mean {' or '.join(map(repr, near))}?)" if near else "")
        )
    shown = ", ".join(map(repr, known[:20])) + (
        f", … ({len(known)} in all)" if len(known) > 20 else ""
    )
    return f"Unknown {what}: {', '.join(hints)}. Known: {shown}."


def _numbers(labels: Iterable[str], known: Sequence[str], what: str) -> Int[np.ndarray, " labels"]:
    number = {name: index for index, name in enumerate(known)}
    labels = list(labels)
    unknown = sorted(set(labels) - set(known))
    if unknown:
        raise UsageError(unknown_names_message(unknown, known, what))
    return np.array([number[name] for name in labels], dtype=np.int64)
