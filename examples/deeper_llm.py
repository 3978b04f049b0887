"""A language model that is deeper and wider than the one it starts from.

A stack that grows repeats whole blocks, an attention receives whole heads, and tokens keep their numbers.
"""

from transformers import LlamaConfig, LlamaForCausalLM

from dpiat import plan

shape = {"vocab_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
source = LlamaForCausalLM(LlamaConfig(**shape, hidden_size=32, intermediate_size=64, num_hidden_layers=2))
target = LlamaForCausalLM(LlamaConfig(**shape, hidden_size=48, intermediate_size=96, num_hidden_layers=4))

planned = plan(source, target)  # source may also be the folder that save_pretrained wrote
for entry in planned.report.entries:
    if "self_attn.q_proj" in entry.target:
        print(entry.target, "from", entry.source)
print(planned.apply().summary())
