"""DPIAT: move the knowledge of a trained network into a network of another architecture.

from dpiat import transfer

transfer(source, target)  # target, any architecture, now starts from what source has learned
"""

from dpiat.architecture import Architecture, Block, Layer
from dpiat.calibration import calibrate
from dpiat.growing import fna, net2net
from dpiat.matching import LayerPair, Matching, match
from dpiat.plan import Plan
from dpiat.reading import standardize
from dpiat.report import Check, Entry, Report, StageCheck
from dpiat.similarity import Candidate, coverage, rank, similarity
from dpiat.sources import load
from dpiat.transfer import plan, transfer

__version__ = "0.1.0"
__all__ = [
    "Architecture",
    "Block",
    "Candidate",
    "Check",
    "Entry",
    "Layer",
    "LayerPair",
    "Matching",
    "Plan",
    "Report",
    "StageCheck",
    "calibrate",
    "coverage",
    "fna",
    "load",
    "match",
    "net2net",
    "plan",
    "rank",
    "similarity",
    "standardize",
    "transfer",
]
