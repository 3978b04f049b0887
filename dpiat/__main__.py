"""The command line: dpiat similarity, dpiat rank, dpiat plan. Needs timm for timm's names."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import importlib
import json
import os
import sys
from collections.abc import Sequence

import torch
from torch import nn

from dpiat.roles import HEADS
from dpiat.similarity import Candidate, coverage, rank, similarity
from dpiat.standardization import MODES, standardize
from dpiat.transfer import plan


class UsageError(Exception):
    """A mistake on the command line: one line that names the thing and says what to do."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 for a mistake, which is named in one line on stderr."""
    arguments = _parser().parse_args(words)
    try:
        arguments.command(arguments)
    except UsageError as error:
        print(f"dpiat: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpiat", description="Which network can teach which, and what it would give.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names = "a timm name or package.module:callable"

    def command(function, example: str) -> argparse.ArgumentParser:
        text = function.__doc__
        added = commands.add_parser(
            function.__name__.strip("_"), help=text, description=text, epilog=f"example: {example}"
        )
        added.set_defaults(command=function)
        added.add_argument("--json", action="store_true", help="print JSON for machines")
        return added

    added = command(_similarity, "dpiat similarity tf_efficientnet_b2 tf_efficientnet_b0")
    added.add_argument("source", help=names)
    added.add_argument("target", help=names)
    added = command(_rank, "dpiat rank mnasnet_100 'efficientnet_*' resnet18")
    added.add_argument("target", help=names)
    added.add_argument("sources", nargs="+", help=f"{names}; timm names may hold * and ?")
    added = command(_plan, "dpiat plan tf_efficientnet_b2 tf_efficientnet_b0 --head copy")
    added.add_argument("source", help=names)
    added.add_argument("target", help=names)
    added.add_argument("--mode", choices=MODES, default="default", help="the library's rules or exactly the paper's")
    added.add_argument("--head", choices=HEADS, default="auto", help="what happens to the classifier")
    return parser


def _similarity(arguments: argparse.Namespace) -> None:
    """How similar two architectures are (Eq. 5), in [0, 1]."""
    source, target = (standardize(_network(name)) for name in (arguments.source, arguments.target))
    values = {
        "similarity": similarity(source, target),
        "to_target": coverage(source, target),
        "to_source": coverage(target, source),
    }
    print(json.dumps(values) if arguments.json else f"{values['similarity']:.3f}")


def _rank(arguments: argparse.Namespace) -> None:
    """Order sources for a target: the most similar first."""
    sources = {}
    for name in _expanded(arguments.sources):
        try:
            sources[name] = standardize(_network(name))
        except UsageError:
            raise
        except Exception as error:  # one of many that cannot be built must not hide the others
            print(f"dpiat: {name} left out: {_first_line(error)}", file=sys.stderr)
    candidates = rank(_network(arguments.target), sources)
    if arguments.json:
        print(json.dumps([candidate._asdict() for candidate in candidates], indent=1))
        return
    width = max((len(candidate.source) for candidate in candidates), default=0)
    print("  ".join([f"{'source':{width}}", *Candidate._fields[1:]]))
    for name, *values in candidates:
        row = (f"{v:{len(field)}.3f}" for v, field in zip(values, Candidate._fields[1:], strict=True))
        print("  ".join([f"{name:{width}}", *row]))


def _plan(arguments: argparse.Namespace) -> None:
    """What a transfer would give to every tensor of the target."""
    planned = plan(_network(arguments.source), _network(arguments.target), arguments.mode, arguments.head)
    print(planned.to_json() if arguments.json else planned)


def _network(name: str) -> nn.Module:
    """The network of a name, without memory for its weights."""
    with torch.device("meta"):
        return _imported(name) if ":" in name else _timm().create_model(_timm_name(name))


def _expanded(names: Sequence[str]) -> list[str]:
    """The names, with those of timm that hold * or ? replaced by what they stand for."""
    expanded: list[str] = []
    for name in names:
        if not set(name) & set("*?"):
            expanded.append(name)
            continue
        found = fnmatch.filter(_timm().list_models(), name)
        if not found:
            raise UsageError(f"no timm name is like {name!r}")
        expanded += found
    return list(dict.fromkeys(expanded))


def _timm_name(name: str) -> str:
    if _timm().is_model(name):
        return name
    near = difflib.get_close_matches(name, _timm().list_models(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "give a timm name or package.module:callable"
    raise UsageError(f"unknown network {name!r}: {hint}")


def _timm():
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UsageError("names of networks need timm: pip install timm, or give package.module:callable") from error


def _imported(name: str) -> nn.Module:
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own module in the current folder
    try:
        network = getattr(importlib.import_module(module), attribute)()
    except (ModuleNotFoundError, AttributeError, TypeError) as error:
        raise UsageError(f"cannot build {name!r}: {_first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"{name} gave a {type(network).__name__}, not a torch.nn.Module")
    return network


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
