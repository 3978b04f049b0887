"""The files of trials: records, checkpoints and locks. A file is there whole or not at all."""
