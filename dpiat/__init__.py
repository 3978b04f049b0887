"""DPIAT: move the knowledge of a trained network into a network of another architecture.

from dpiat import transfer

transfer(source, target)  # target, any architecture, now starts from what source has learned
"""

from dpiat.architecture import Architecture, Block, Layer
from dpiat.matching import Matching, match
from dpiat.similarity import Candidate, coverage, rank, similarity
from dpiat.standardization import standardize
from dpiat.transfer import Entry, Plan, Report, plan, transfer

__all__ = [
    "Architecture",
    "Block",
    "Candidate",
    "Entry",
    "Layer",
    "Matching",
    "Plan",
    "Report",
    "coverage",
    "match",
    "plan",
    "rank",
    "similarity",
    "standardize",
    "transfer",
]
