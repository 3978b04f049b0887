"""The reproduction of the paper: one trial at a time, one record for each."""
