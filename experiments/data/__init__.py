"""Data sets and their augmented batches."""
