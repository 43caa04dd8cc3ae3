"""Which configuration values have a flag of their own, and which an environment variable."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """A command-line flag and environment variable for one configuration value."""

    name: str
    key: str
    help: str
    env: str | None = None
    nargs: str | None = None


FLAGS = (
    Flag("train_data_path", "data.train_data_path", "h5ad to learn from", "TRAIN_DATA_PATH"),
    Flag("gene", "data.gene", "obs column of the perturbation"),
    Flag("cell_type_col", "data.cell_type_col", "obs column of the cell type", "CELL_TYPE_COL"),
    Flag("batch_col", "data.batch_col", "obs column of the batch (donor, plate)"),
    Flag("control_name", "data.control_name", "label of unperturbed cells"),
    Flag("num_genes", "data.num_genes", "most variable genes to model, or 'all'"),
    Flag(
        "cond_labels_pt_path",
        "data.cond_labels_pt_path",
        "file of perturbation -> vector",
        "COND_LABELS_PT_PATH",
    ),
    Flag(
        "celltype_labels_pt_path",
        "data.celltype_labels_pt_path",
        "file of cell type -> vector; needs model.cell_type_label_dropout below 1",
        "CELLTYPE_LABELS_PT_PATH",
    ),
    Flag("size", "model.size", "small, medium or large"),
    Flag("batch_size", "training.batch_size", "cells per step"),
    Flag("num_epochs", "training.num_epochs", "passes over the cells"),
    Flag("max_steps", "training.max_steps", "steps, instead of epochs"),
    Flag("max_seconds", "training.max_seconds", "stop with a checkpoint after this long"),
    Flag("learning_rate", "training.learning_rate", "peak learning rate"),
    Flag("num_workers", "scaling.num_workers", "training workers"),
    Flag("num_actors", "scaling.num_actors", "generating processes"),
    Flag("use_gpu", "scaling.use_gpu", "true or false"),
    Flag("cell_type", "inference.cell_type", "one cell type to generate", "CELL_TYPE"),
    Flag("cell_types", "inference.cell_types", "cell types to generate, or all", nargs="+"),
    Flag("perturbations", "inference.perturbations", "perturbations to generate", nargs="+"),
    Flag(
        "num_samples_per_condition",
        "inference.num_samples_per_condition",
        "cells per cell type and perturbation",
    ),
    Flag(
        "num_steps",
        "inference.num_steps",
        "steps per cell: blocks of genes revealed one after another",
    ),
    Flag("temperature", "inference.temperature", "divides the logits; 1 is calibrated"),
    Flag("mode", "inference.mode", "counterfactual or population"),
    Flag("experiment_dir", "experiment_dir", "folder of the experiment", "EXPERIMENT_DIR"),
    Flag("checkpoint_dir", "checkpoint_dir", "folder of the checkpoints", "CHECKPOINT_DIR"),
    Flag("resume", "resume", "auto, or a checkpoint folder", "RESUME"),
)
"""Flags of the verbs; every other value is reached by --set section.key=value."""
