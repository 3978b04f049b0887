"""The one training loop: epochs of a network on a data set, whatever the first weights are."""
