"""What the README says is so."""

import re
import subprocess
from pathlib import Path

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


def test_the_examples_run(capsys, tmp_path, monkeypatch):
    first, more = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(first.replace("pretrained=True", "pretrained=False"), names)  # the same without a download
    similarity, *plan, summary = capsys.readouterr().out.splitlines()
    assert 0 < float(similarity) < 1 and plan[0].startswith("target tensor") and "elements filled" in summary
    monkeypatch.chdir(tmp_path)
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, "resnet18.pth")
    save_file(state, "resnet18.safetensors")
    save_file(names["target"].state_dict(), "mnasnet_100.safetensors")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes)).save_pretrained("Llama-3.2-1B")
    adams = {f"{role}_adam": torch.optim.Adam(names[role].parameters()) for role in ("source", "target")}
    exec(more, names | adams | {"my_matching": dpiat.match, "my_operator": uniform})


def test_the_commands_exist():
    targets = subprocess.check_output(["make", "help"], cwd=ROOT, text=True)
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"{target}\t" in targets
    for words in re.findall(r"^dpiat (similarity|plan) (\S+) (\S+)$", README, flags=re.MULTILINE):
        assert main(words) == 0


def test_every_short_name_is_named():
    for name in SHORT_NAMES:
        assert name in README.split() or f"`{name}" in README or f"{name}`" in README


def test_links_lead_somewhere():
    for file in (ROOT / "README.md", ROOT / "results" / "README.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / link).exists(), f"{file.name}: {link}"
