"""From an h5ad to tensors: reading, tokens, splits, control statistics, shards and batches."""
