"""The uses of weights: predictions, a run that is computed again, files that need no PyTorch, and weights from elsewhere."""
