"""The verbs: short programs that carry what the library yields to Ray, MLflow and the disk."""
