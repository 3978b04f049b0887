"""Data sets and their augmented batches: what a training is fed."""
