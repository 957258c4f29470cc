"""Runs: the four files that the stages write, what trained the weights, and finished runs kept whole."""
