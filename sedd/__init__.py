"""Predict perturbed single cells, as raw counts, with score-entropy discrete diffusion."""

__version__ = "0.1.0"
