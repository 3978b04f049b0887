"""The reproduction of the paper: each trial leaves one record, and tables and figures are made from the records.

From the ground up:

datasets, settings       the table of data sets, and every setting of a trial
store/                   files: records, checkpoints, locks
data/                    images: finding them, reading them, augmented batches
train/                   the training loop, on one device or many
models, initialization   networks by name, and their first weights (with ghn2, ghn2_graph)
planning, trial          settings -> a trial -> its record (with tracking, report)
grids                    an experiment -> its trials
results/                 records and the paper's numbers -> tables and figures
tables, figures          commands that write and check tables and figures (callback runs them at the end of a multirun)
evidence, check_weights  commands that commit records, and that test ImageNet weights
recipe                   what each rule of the default mode is worth
"""
