"""Names to numbers: genes, perturbations and cell types of one model, in a fixed order."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from sedd.errors import DataError, UsageError


@dataclass(frozen=True)
class Vocabulary:
    """Labels in the order of their numbers; control is always perturbation 0."""

    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    cell_types: tuple[str, ...]

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
    ) -> "Vocabulary":
        """Sort the labels that occur; put control first."""
        treated = sorted(set(perturbations) - {control_name})
        return cls(tuple(genes), (control_name, *treated), tuple(sorted(set(cell_types))))

    def perturbation_ids(self, labels: Iterable[str]) -> Int[np.ndarray, " labels"]:
        """Number of each perturbation; UsageError with the nearest names if one is unknown."""
        return _numbers(labels, self.perturbations, "perturbation")

    def cell_type_ids(self, labels: Iterable[str]) -> Int[np.ndarray, " labels"]:
        """Number of each cell type; UsageError with the nearest names if one is unknown."""
        return _numbers(labels, self.cell_types, "cell type")

    def to_json(self) -> str:
        """Text that `from_json` reads back."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Read what `to_json` wrote; DataError if it is something else."""
        try:
            content = {key: tuple(value) for key, value in json.loads(text).items()}
            return cls(**content)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"This is not a vocabulary: {error}.") from error

    def save(self, path: Path) -> None:
        """Write `vocabulary.json`."""
        path.write_text(self.to_json(), encoding="utf-8")


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
