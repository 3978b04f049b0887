"""The reproduction of the paper: one trial at a time, one record for each. From the ground up:

datasets, settings       what one can ask for
store/                   what is on disk: records, checkpoints, locks
data/                    images: where they lie, how they are read, their augmented batches
train/                   the training loop, on one device or many
models, initialization   networks by name, and their first weights (with ghn2, ghn2_graph)
planning, trial          settings -> a trial -> its record (with tracking, report)
grids                    an experiment -> its trials
results/                 records, beside the paper -> what tables and figures say
tables, figures          commands that build, write and check them (with callback, at the end of a multirun)
evidence, check_weights  commands that keep records, and try ImageNet weights
"""
