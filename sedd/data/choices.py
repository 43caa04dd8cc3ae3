"""What a user chooses about the data: the section `data` of a configuration."""

from dataclasses import dataclass
from typing import Literal

GENERATED_COLUMNS = (
    "perturbation", "cell_type", "depth", "control_row", "generated", "control_cell", "effect_size",
)  # fmt: skip
"""obs columns of generated cells that have a meaning of their own."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which cells, which columns, which genes, which bins."""

    __pydantic_config__ = {"extra": "forbid"}

    train_data_path: str | None = None
    """The h5ad to learn from."""
    gene: str = "perturbation"
    """obs column of the perturbation (the knocked-out gene, the drug)."""
    cell_type_col: str = "cell_type"
    """obs column of the cell type."""
    batch_col: str | None = None
    """obs column of the batch (donor, plate); null tells the model none."""
    control_name: str = "control"
    """Label of unperturbed cells in the perturbation column."""
    num_genes: int | Literal["all"] = 2000
    """Most variable genes to model, chosen on training cells, or all."""
    combination_separator: str | None = "+"
    """Joins the names of perturbations applied together, as in A+B; null: names are opaque."""
    gene_list: str | None = None
    """Text file with one gene per line to model instead."""
    layer: str | None = None
    """Layer to read instead of X."""
    depth_col: str | None = None
    """obs column of the library size; null sums over all genes of the file."""
    input_kind: Literal["auto", "counts", "log1p"] = "auto"
    """Space of the values: raw counts or log1p of normalised counts."""
    exact_counts: int = 10
    """Counts below this have a bin of their own."""
    bin_ratio: float = 1.3
    """Growth of the bins above."""
    control_cells_per_type: int = 512
    """Most control cells of each type that a checkpoint keeps for counterfactual sampling."""
    cond_labels_pt_path: str | None = None
    """File of perturbation name -> vector; null learns an embedding per label."""
    celltype_labels_pt_path: str | None = None
    """File of cell type -> vector; null learns an embedding per label."""
    prepared_dir: str | None = None
    """Where token shards are kept; null is experiment_dir/prepared."""

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        problems = []
        for name in ("num_genes", "exact_counts", "control_cells_per_type"):
            value = getattr(self, name)
            if value != "all" and value < 1:
                problems.append(f"data.{name} is {value}, wanted at least 1.")
        if not self.bin_ratio > 1:
            problems.append(f"data.bin_ratio is {self.bin_ratio}, wanted more than 1.")
        if self.batch_col in GENERATED_COLUMNS:
            problems.append(
                f"data.batch_col is {self.batch_col!r}, which generated cells have already. "
                "Copy the column to another name, e.g. 'batch'."
            )
        if problems:
            raise ValueError("\n  ".join(problems))
