"""A mixture of experts that begins as the dense language model it is made from.

Every expert takes the whole feed-forward network, and the routers keep their own random weights ("sparse upcycling",
arXiv 2212.05055). The experts that a token asks have weights that add up to 1, so that the mixture computes what the
dense model computes.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from dpiat import transfer

shape = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
shape["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}  # the two classes have other defaults
source = LlamaForCausalLM(LlamaConfig(**shape))
target = MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=4))

report = transfer(source, target)
print(report.summary())
tokens = torch.arange(20)[None]
with torch.no_grad():
    difference = (source(tokens).logits - target(tokens).logits).abs().max().item()
print(f"largest difference of the outputs: {difference:.1e}")
