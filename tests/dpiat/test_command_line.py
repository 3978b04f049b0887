"""dpiat similarity, rank, plan and transfer, as a user calls them."""

import csv
import json
import logging
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import timm
import torch
from networks import on_meta, small, trained
from safetensors.torch import load_file, save_file

from dpiat import Plan, load, rank, similarity, standardize, transfer
from dpiat.__main__ import main


def printed(capsys, *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_similarity(capsys):
    found = printed(capsys, "similarity", "tf_efficientnet_b2", "tf_efficientnet_b0")
    values = json.loads(printed(capsys, "similarity", "--json", "tf_efficientnet_b2", "tf_efficientnet_b0"))
    assert found == f"{values['similarity']:.3f}\n"
    assert values["similarity"] == pytest.approx((values["to_target"] * values["to_source"]) ** 0.5)


@pytest.mark.slow
def test_rank_puts_the_most_similar_first(capsys):
    lines = printed(capsys, "rank", "tf_efficientnet_b0", "resnet1?t", "resnet18", "tf_efficientnet_b1")
    lines = [line.split() for line in lines.splitlines()]
    assert lines[0] == ["source", "similarity", "to_target", "to_source", "filled", "pretrained"]
    assert lines[1][0] == "tf_efficientnet_b1"
    assert sorted(line[0] for line in lines[2:]) == ["resnet10t", "resnet14t", "resnet18"]
    assert lines[1:] == sorted(lines[1:], key=lambda line: -float(line[1]))
    rows = json.loads(printed(capsys, "rank", "tf_efficientnet_b0", "tf_efficientnet_b0", "--json"))
    ones = dict.fromkeys(("similarity", "to_target", "to_source", "filled"), 1)
    assert rows == [{"source": "tf_efficientnet_b0", **ones, "pretrained": True}]


def test_rank_writes_a_csv_of_the_first(capsys, tmp_path):
    file = tmp_path / "ranking.csv"
    words = ["rank", "resnet18", "resnet10t", "resnet18", "torch.nn:Identity", "--csv", str(file)]
    printed(capsys, *words)
    rows = list(csv.DictReader(file.open()))
    assert [(row["source"], row["pretrained"]) for row in rows] == [
        ("resnet18", "True"),
        ("resnet10t", "True"),
        ("torch.nn:Identity", ""),
    ]
    assert float(rows[1]["similarity"]) == similarity(on_meta("resnet10t"), on_meta("resnet18"))
    lines = printed(capsys, *words, "--top", "1").splitlines()
    assert len(lines) == 2 and len(list(csv.DictReader(file.open()))) == 1


def test_rank_without_sources_takes_all_of_timm(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("timm.list_models", lambda: ["resnet10t", "resnet18"])
    rows = json.loads(printed(capsys, "rank", "resnet18", "--json"))
    assert [row["source"] for row in rows] == ["resnet18", "resnet10t"]


def test_plots(capsys, tmp_path):
    printed(capsys, "plot-matching", "resnet10t", "resnet18", "--out", str(tmp_path / "matching.svg"))
    printed(capsys, "plot-similarity", "resnet1?t", "resnet18", "--out", str(tmp_path / "similarity.png"))
    assert "resnet10t" in (tmp_path / "matching.svg").read_text()
    assert (tmp_path / "similarity.png").read_bytes().startswith(b"\x89PNG")


def test_rank_counts_the_weights_that_would_be_filled():
    (candidate,) = rank(small(10, 32), {"narrow": standardize(small(10, 16))})
    weights = [(32, 3, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 64)]
    given = [(16, 3, 3, 3), (16,), (32, 16, 3, 3), (32,), (10, 32)]

    def elements(shapes):
        return sum(prod(shape) for shape in shapes)

    assert candidate.filled == pytest.approx(elements(given) / elements(weights))
    with pytest.raises(TypeError, match=r"bad must be a .*Module or an Architecture, got int"):
        rank(small(10), {"bad": 3})


def test_plan(capsys):
    text = printed(capsys, "plan", "resnet18", "resnet34")
    source, target = on_meta("resnet18"), on_meta("resnet34")
    elements = sum(tensor.numel() for tensor in target.state_dict().values())
    assert "layer1.0.conv1.weight" in text and f"of the target's {elements:,} elements filled" in text
    kept = Plan.from_json(printed(capsys, "plan", "resnet18", "resnet34", "--json", "--head", "skip"), source, target)
    assert [e.note for e in kept.report.entries if e.target == "fc.weight"] == [
        "the classifier, which head='skip' leaves"
    ]


def test_a_network_whose_constructor_reads_values_is_built_with_them(capsys):
    assert float(printed(capsys, "similarity", "networks:scaled", "networks:scaled")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_transfer_writes_the_weights_to_start_from(capsys, tmp_path, suffix):
    source, out = trained("resnet18", 0), tmp_path / f"resnet34{suffix}"
    torch.save(source.state_dict(), tmp_path / "resnet18.pt")
    words = ("--target", "resnet34", "--classes", "10", "--out", str(out), "--mode", "paper")
    assert f"{out}: " in printed(capsys, "transfer", "--source", str(tmp_path / "resnet18.pt"), *words)
    torch.manual_seed(0)
    expected = timm.create_model("resnet34", num_classes=10)
    transfer(source.state_dict(), expected, mode="paper")
    found = load_file(out) if suffix == ".safetensors" else torch.load(out)
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    # as the training script of timm does with --initial-checkpoint
    begun = timm.create_model("resnet34", num_classes=10, checkpoint_path=str(out)).state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in expected.state_dict().items())
    assert list(load(out).state_dict()) == list(expected.state_dict())
    if suffix == ".safetensors":
        again = out.with_name("again.safetensors")
        save_file(found, again)
        with pytest.raises(ValueError, match="in an order that is not the network's"):
            load(again)
        printed(capsys, "transfer", "--source", str(again), *words[:4], "--out", str(again))
        assert all(torch.equal(found[name], tensor) for name, tensor in load_file(again).items())
        again.unlink()
    ranked = printed(
        capsys, "rank", "resnet34", str(tmp_path / "resnet18.pt"), "resnet34", "--csv", str(out.with_name("a.csv"))
    )
    assert [line.split()[0] for line in ranked.splitlines()] == ["source", "resnet34", str(tmp_path / "resnet18.pt")]
    assert (
        out.with_name("a.csv")
        .read_text()
        .startswith("source,similarity,to_target,to_source,filled,pretrained\nresnet34,")
    )
    out.with_name("a.csv").unlink()
    planned = printed(capsys, "plan", str(tmp_path / "resnet18.pt"), "resnet34", "--architecture", "resnet18")
    assert "layer1.0.conv1.weight" in planned and sorted(tmp_path.iterdir()) == [tmp_path / "resnet18.pt", out]


def test_a_network_of_the_users_own(capsys):
    assert printed(capsys, "similarity", "torch.nn:Identity", "resnet18") == "0.000\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rank", "resnet18", "resnet10t", "--top", "0"), "dpiat: --top must be at least 1, got 0"),
        (("rank", "resnet18", "resnet10t", "--csv", "none/r.csv"), "dpiat: no folder none for r.csv"),
        (("plot-matching", "resnet18", "resnet18", "--out", "m.gif"), "dpiat: m.gif: cannot save a figure as '.gif'"),
        (("similarity", "resnet81", "resnet18"), "dpiat: unknown network 'resnet81': did you mean resnet18"),
        (("rank", "resnet18", "resnext_none*"), "dpiat: no timm name is like 'resnext_none*'"),
        (("rank", "resnet18", str(Path(__file__).parent)), "dpiat: no files of weights in "),
        (("plan", "nowhere:net", "resnet18"), "dpiat: cannot import 'nowhere:net': No module named 'nowhere'"),
        (("plan", "torch.nn:Linear", "resnet18"), "dpiat: cannot build 'torch.nn:Linear': "),
        (("plan", "networks:broken", "resnet18"), "dpiat: cannot build 'networks:broken': no such width"),
        (
            ("plan", "collections:Counter", "resnet18"),
            "dpiat: collections:Counter gave a Counter, not a torch.nn.Module",
        ),
        (
            ("transfer", "--source", "resnet18", "--target", "resnet18", "--out", "x.onnx"),
            "dpiat: --out x.onnx must end",
        ),
        (("transfer", "--source", "x.pt", "--target", "resnet18", "--out", "y.pt"), "dpiat: x.pt does not exist"),
        (("transfer", "--source", "resnet18", "--target", "x.pt", "--out", "y.pt"), "dpiat: x.pt is a file of weights"),
        (
            ("transfer", "--source", "torch.nn:Identity", "--target", "resnet18", "--out", "/no/such/folder/y.pt"),
            "dpiat: no folder /no/such/folder for y.pt",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(capsys, words, message):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


COMMANDS = ("similarity", "rank", "plan", "report", "transfer", "plot-matching", "plot-similarity")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"example: dpiat {command}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_package_is_a_program():
    text = subprocess.check_output([sys.executable, "-m", "dpiat", "--help"], text=True)
    assert set(COMMANDS) <= set(text.split())


def test_what_the_library_logs_is_told_once_on_stderr(capsys, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"123")
    for _ in range(2):
        assert main(("rank", "resnet10t", str(tmp_path))) == 0
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"dpiat: {tmp_path / 'broken.pt'} left out: ")
    assert not logging.getLogger("dpiat").handlers


@pytest.mark.slow
def test_files_can_be_targets_and_one_that_fails_hides_no_other(capsys, tmp_path):
    file = tmp_path / "resnet18.pt"
    torch.save(trained("resnet18", 0).state_dict(), file)
    assert printed(capsys, "rank", str(file), "resnet10t", "resnet18").splitlines()[1].startswith("resnet18")
    printed(capsys, "plot-similarity", "resnet10t", str(file), "--out", str(tmp_path / "similarity.png"))
    (tmp_path / "broken.pt").write_bytes(b"123")
    assert main(("rank", "resnet18", str(tmp_path))) == 0
    out, error = capsys.readouterr()
    assert "broken.pt left out: " in error and str(file) in out
    named = printed(capsys, "similarity", str(file), str(file), "--architecture", "resnet18")
    assert named == "1.000\n"
    assert json.loads(printed(capsys, "rank", "resnet10t", "resnet18.a1_in1k", "--json"))[0]["pretrained"] is True
    for words, message in (
        (("rank", str(file)), "dpiat: the target is a state dict: name its architecture, or name the sources"),
        (("rank", "resnet10t", "resnet18.typo"), "dpiat: cannot build 'resnet18.typo': "),
        (("rank", "resnet10t", "nowhere/"), "dpiat: no folder nowhere/"),
        (("plan", "resnet18", "resnet10t", "--architecture", "resnet18"), "dpiat: --architecture says what a file of"),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(message)


def test_classes_reach_a_network_that_passes_them_on(capsys, tmp_path):
    words = ("--source", "torch.nn:Identity", "--classes", "7", "--out", str(tmp_path / "net.pt"))
    printed(capsys, "transfer", "--target", "torchvision.models:resnet18", *words)
    assert len(torch.load(tmp_path / "net.pt")["fc.bias"]) == 7
    assert main(("transfer", "--target", "networks:fixed", *words)) == 2
    assert "networks:fixed has no layer of 7 outputs and takes no num_classes" in capsys.readouterr().err


def test_what_a_safetensors_file_cannot_hold_is_named(capsys, tmp_path):
    words = (
        "--source",
        "torch.nn:Identity",
        "--target",
        "networks:stateful",
        "--out",
        str(tmp_path / "net.safetensors"),
    )
    assert main(("transfer", *words)) == 2
    assert "_extra_state is not a tensor, and .safetensors holds nothing else: give a .pt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tied_weights_can_be_written_as_safetensors(capsys, tmp_path):
    words = ("--source", "torch.nn:Identity", "--target", "networks:tied", "--out", str(tmp_path / "net.safetensors"))
    printed(capsys, "transfer", *words)
    found = load_file(tmp_path / "net.safetensors")
    assert torch.equal(found["0.weight"], found["1.weight"])
