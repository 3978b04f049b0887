"""What the README and the guides say is so."""

import copy
import re
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import dpiat
from dpiat.__main__ import main
from dpiat.operators import uniform
from experiments.models import SHORT_NAMES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LIBRARY, REPRODUCTION = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("library", "reproduction"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.slow
def test_the_examples_run(capsys, tmp_path, monkeypatch):
    (first,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(first.replace("pretrained=True", "pretrained=False"), names)  # the same without a download
    similarity, *plan, summary = capsys.readouterr().out.splitlines()
    assert 0 < float(similarity) < 1 and plan[0].startswith("target tensor") and "elements filled" in summary
    monkeypatch.chdir(tmp_path)
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, "resnet18.pth")
    save_file(state, "resnet18.safetensors")
    save_file(names["target"].state_dict(), "mnasnet_100.safetensors")
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, "checkpoints/resnet18.pth")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes)).save_pretrained("Llama-3.2-1B")
    names |= {f"{role}_adam": torch.optim.Adam(names[role].parameters()) for role in ("source", "target")}
    names |= {
        "my_matching": dpiat.match,
        "my_operator": uniform,
        "Path": Path,
        "load": dpiat.load,
        "Plan": dpiat.Plan,
        "rank": dpiat.rank,
        "copy": copy,
    }
    names |= {"images": torch.rand(8, 3, 64, 64), "labels": [0, 1] * 4, "calibrate": dpiat.calibrate}
    for code in re.findall(r"```python\n(.*?)```", LIBRARY, flags=re.DOTALL):
        exec(code, names)
    assert Path("report.html").read_text().startswith("<!DOCTYPE html>")
    *checked, first, second, third = capsys.readouterr().out.splitlines()
    ranked = [first, second, third]
    assert checked[0].startswith("stage") and checked[-1].startswith("8 images")
    assert all(f"| `{column}` |" in LIBRARY for column in re.split(r"  +", checked[0])[1:])
    assert all(0 < float(line.split()[1]) < 1 for line in ranked)


def test_the_commands_exist():
    targets = subprocess.check_output(["make", "help"], cwd=ROOT, text=True)
    for target in re.findall(r"^make (\w+)", README + REPRODUCTION, flags=re.MULTILINE):
        assert f"{target}\t" in targets
    for words in re.findall(r"^dpiat (similarity|plan) (\S+) (\S+)$", LIBRARY, flags=re.MULTILINE):
        assert main(words) == 0


def test_each_command_stands_in_the_guide(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z-]+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert {"plan", "report", "transfer"} < set(commands)
    assert all(f"\ndpiat {command} " in LIBRARY for command in commands)


def test_the_guide_says_what_each_number_of_a_candidate_is():
    section = LIBRARY.partition("## Which source is the best?")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == list(dpiat.Candidate._fields)


def test_every_short_name_is_named():
    for name in SHORT_NAMES:
        assert name in REPRODUCTION.split() or f"`{name}" in REPRODUCTION or f"{name}`" in REPRODUCTION


@pytest.mark.parametrize("file", PAGES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_links_lead_somewhere(file):
    for link, section in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", file.read_text()):
        linked = (file.parent / link).resolve() if link else file
        assert linked.exists(), f"{file.name}: {link}"
        if section and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.MULTILINE)
            names = re.findall(r"^::: ([\w.]+)$", linked.read_text(), flags=re.MULTILINE)  # of the API reference
            assert section in {*map(anchor, headings), *names}, f"{file.name}: {link}#{section}"


def anchor(heading: str) -> str:
    """The place in a page that GitHub and mkdocs give to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
