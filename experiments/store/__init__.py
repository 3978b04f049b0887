"""What is on disk: records, checkpoints and locks, each there whole or not at all."""
