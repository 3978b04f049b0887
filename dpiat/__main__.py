"""The command line: dpiat similarity, rank, plan, report, transfer and two plots. Needs timm for timm's names."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from dpiat import plotting, sources
from dpiat.assignment import MATCHINGS
from dpiat.checkpoints import ORDER
from dpiat.files import replacing
from dpiat.heads import HEADS
from dpiat.operators import OPERATORS
from dpiat.reading import MODES, standardize
from dpiat.similarity import Candidate, coverage, rank, similarity
from dpiat.transfer import plan


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 for a mistake, which is named in one line on stderr."""
    arguments = _parser().parse_args(words)
    try:
        _check_architecture(arguments)
        with _log_on_stderr():
            arguments.command(arguments)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        print(f"dpiat: {sources.first_line(error)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Print what the library logs, as the lines of this program."""
    logger, handler = logging.getLogger("dpiat"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("dpiat: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpiat", description="Which network can teach which, and what it would give.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names = (
        "a timm name, package.module:callable, a file of weights (.pt, .pth, .bin, .safetensors), "
        "or a folder that save_pretrained wrote"
    )

    def command(function, example: str) -> argparse.ArgumentParser:
        text = function.__doc__
        added = commands.add_parser(
            function.__name__.strip("_").replace("_", "-"), help=text, description=text, epilog=f"example: {example}"
        )
        added.set_defaults(command=function)
        added.add_argument("--architecture", help="the network of the files of weights; .safetensors may need this")
        if not function.__name__.startswith("_plot"):
            added.add_argument("--json", action="store_true", help="print JSON for machines")
        return added

    added = command(_similarity, "dpiat similarity tf_efficientnet_b2 tf_efficientnet_b0")
    added.add_argument("source", help=names)
    added.add_argument("target", help=names)
    added = command(_rank, "dpiat rank mnasnet_100 'efficientnet_*' resnet18")
    added.add_argument("target", help=names)
    added.add_argument(
        "sources",
        nargs="*",
        help=f"{names}, or a folder of files; timm names may hold * and ?; all of timm if left out",
    )
    added.add_argument("--top", type=int, metavar="N", help="only the N most similar sources")
    added.add_argument("--csv", type=Path, metavar="FILE", help="write the table there too")
    added = command(_plan, "dpiat plan tf_efficientnet_b2 tf_efficientnet_b0 --head copy")
    added.add_argument("source", help=names)
    added.add_argument("target", help=names)
    _add_choices(added)
    added = command(_report, "dpiat report tf_efficientnet_b2 tf_efficientnet_b0 --out report.html")
    added.add_argument("source", help=names)
    added.add_argument("target", help=names)
    added.add_argument("--out", required=True, type=Path, help="file for the page")
    _add_choices(added)
    added = command(
        _transfer, "dpiat transfer --source b2.pth --target mnasnet_100 --classes 10 --out mnasnet.safetensors"
    )
    added.add_argument("--source", required=True, help=f"{names}; timm's bring their pretrained weights")
    added.add_argument("--target", required=True, help="a timm name or package.module:callable")
    added.add_argument("--classes", type=int, help="classes of the target; its own number if left out")
    added.add_argument("--seed", type=int, default=0, help="of the target's initial weights")
    added.add_argument(
        "--out",
        required=True,
        type=Path,
        help="file for the target's state dict: .safetensors or .pt",
    )
    _add_choices(added)
    added = command(_plot_matching, "dpiat plot-matching rexnet_100 tf_efficientnet_b2 --out matching.svg")
    added.add_argument("source", help=names)
    added.add_argument("target", help=names)
    added.add_argument("--out", required=True, help="file for the picture: .png, .svg or .pdf")
    added = command(_plot_similarity, "dpiat plot-similarity resnet18 resnet34 mnasnet_100 --out similarity.png")
    added.add_argument("networks", nargs="+", help=f"{names}; timm names may hold * and ?")
    added.add_argument("--out", required=True, help="file for the picture: .png, .svg or .pdf")
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=MODES, default="default", help="the library's rules or exactly the paper's")
    parser.add_argument("--head", choices=HEADS, default="auto", help="what happens to the classifier")
    parser.add_argument("--matching", choices=list(MATCHINGS), default="dp", help="which layer goes to which")
    parser.add_argument("--operator", choices=list(OPERATORS), default="clip", help="which entries fill which")


def _similarity(arguments: argparse.Namespace) -> None:
    """Say how similar two architectures are (Eq. 5), in [0, 1]."""
    source, target = _pair(arguments)
    values = {
        "similarity": similarity(source, target),
        "to_target": coverage(source, target),
        "to_source": coverage(target, source),
    }
    print(json.dumps(values) if arguments.json else f"{values['similarity']:.3f}")


def _rank(arguments: argparse.Namespace) -> None:
    """Order sources for a target: the most similar first. Sources are all of timm unless you name some."""
    if arguments.top is not None and arguments.top < 1:
        raise ValueError(f"--top must be at least 1, got {arguments.top}")
    candidates = rank(arguments.target, arguments.sources or None, arguments.architecture)[: arguments.top]
    if arguments.csv:
        with replacing(arguments.csv) as written, open(written, "w", newline="") as file:
            csv.writer(file).writerows([Candidate._fields, *candidates])
    if arguments.json:
        print(json.dumps([candidate._asdict() for candidate in candidates], indent=1))
    else:
        _print_table(candidates)


def _print_table(candidates: Sequence[Candidate]) -> None:
    width = max((len(candidate.source) for candidate in candidates), default=0)
    fields = Candidate._fields[1:]
    print("  ".join([f"{'source':{width}}", *fields]))
    for name, *values, pretrained in candidates:
        row = [f"{value:{len(field)}.3f}" for value, field in zip(values, fields, strict=False)]
        print("  ".join([f"{name:{width}}", *row, {True: "yes", False: "no", None: ""}[pretrained]]).rstrip())


def _plan(arguments: argparse.Namespace) -> None:
    """Say what a transfer would give to every tensor of the target."""
    source, target = _pair(arguments)
    planned = plan(source, target, arguments.mode, arguments.head, arguments.matching, arguments.operator)
    print(planned.to_json() if arguments.json else planned)


def _report(arguments: argparse.Namespace) -> None:
    """Show the plan as a page of HTML: which block comes from which, what share of it, and warnings in colour."""
    source, target = _pair(arguments)
    planned = plan(source, target, arguments.mode, arguments.head, arguments.matching, arguments.operator)
    with replacing(arguments.out) as written:
        written.write_text(planned.to_html((arguments.source, arguments.target)), encoding="utf-8")
    print(planned.to_json() if arguments.json else f"{arguments.out}: {planned.report.summary()}")


def _transfer(arguments: argparse.Namespace) -> None:
    """Write the weights that a network starts from, given a trained one of another architecture."""
    out = arguments.out if arguments.out.suffix else arguments.out.with_suffix(".safetensors")
    if out.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"--out {out} must end in .pt or .safetensors")
    torch.manual_seed(arguments.seed)
    target = sources.build(arguments.target, classes=arguments.classes)
    source = sources.load(arguments.source, architecture=arguments.architecture, like=target)
    wanted = (arguments.classes,)
    if arguments.classes and all(layer.shape[:1] != wanted for layer in standardize(target).layers):
        raise ValueError(f"{arguments.target} has no layer of {wanted[0]} outputs and takes no num_classes")
    planned = plan(source, target, arguments.mode, arguments.head, arguments.matching, arguments.operator)
    report = planned.apply()
    _save(target.state_dict(), out)
    print(planned.to_json() if arguments.json else f"{out}: {report.summary()}")


def _plot_matching(arguments: argparse.Namespace) -> None:
    """Draw which blocks and layers of one network go to which of another (figure 2)."""
    plotting.plot_matching(*_pair(arguments), arguments.out, names=(arguments.source, arguments.target))


def _plot_similarity(arguments: argparse.Namespace) -> None:
    """Draw the similarities of all pairs of networks (figure 5)."""
    plotting.plot_similarity(dict(sources.networks_of(arguments.networks, arguments.architecture)), arguments.out)


def _save(state: dict[str, torch.Tensor], file: Path) -> None:
    with replacing(file) as written:
        try:
            if file.suffix == ".safetensors":
                from safetensors.torch import save_file

                if other := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
                    raise ValueError(f"{other[0]} is not a tensor, and .safetensors holds nothing else: give a .pt")
                save_file(_apart(state), written, {"format": "pt", ORDER: json.dumps(list(state))})
            else:
                torch.save(state, written)
        except (OSError, ImportError):
            raise
        except Exception as error:  # an error of safetensors, or torch's own for a full disk
            raise ValueError(f"{file} cannot be written: {sources.first_line(error)}") from error


def _apart(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, each contiguous and in memory of its own, as .safetensors wants them.

    A tensor is copied only if its memory is shared or has gaps. A tied tensor is written under each of its names.
    """
    memory, apart = set(), {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        alone = place not in memory and tensor.nbytes == tensor.untyped_storage().nbytes()
        apart[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
        memory.add(place)
    return apart


def _pair(arguments: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """The source and the target, without memory for the weights of names."""
    target = sources.load_without_weights(arguments.target, arguments.architecture)
    return sources.load_without_weights(arguments.source, arguments.architecture, like=target), target


def _check_architecture(arguments: argparse.Namespace) -> None:
    """Raise ValueError if --architecture would mean nothing."""
    words = vars(arguments)
    names = [*filter(None, map(words.get, ("source", "target"))), *words.get("sources", ()), *words.get("networks", ())]
    if arguments.architecture and not any(sources.is_stored(name) or Path(name).is_dir() for name in names):
        raise ValueError("--architecture says what a file of weights is of, and no file is given")


if __name__ == "__main__":
    sys.exit(main())
