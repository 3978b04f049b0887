"""What a layer is for, by the words that libraries name it with: a table that a user can extend.

Layers of different known roles never match in default mode. A layer whose name says nothing has the role "" and matches
by its shape. The same table serves modules and state dicts.
"""

from __future__ import annotations

import re
from functools import lru_cache

CROSS = re.compile(r"(?:^|\.)(\w*cross_?att\w*|encdecattention|encoder_attn|multihead_attn|crossattention)\.")
ATTENTION = r"(?:\w*attn\w*|\w*attention\w*|mha|mixer)"
FEED_FORWARD = r"(?:mlp|ffn?|feed_?forward\w*|densereludense|\w*mlp|intermediate|experts?)"

QUERY, KEY, VALUE = "query", "key", "value"
PROJECTED = "attention output"
PROJECTIONS = (QUERY, KEY, VALUE, PROJECTED)
INTO, GATE, OUT_OF = "into the hidden units", "gate of the hidden units", "out of the hidden units"
SHORTCUT = "shortcut"
REDUCE, EXPAND = "squeeze", "excite"
STATE_SPACE = "time step", "into the state", "out of the state"  # of a Mamba (arXiv 2312.00752, algorithm 2)
ROUTER = "router"  # which of a mixture's experts are asked
POSITION, TOKEN, SEGMENT = "position", "token", "segment"
OFFSET = "relative position"
# In a block, layers of these roles come in this order, in whichever a library registers them.
ORDER = (QUERY, KEY, VALUE, PROJECTED, *(f"cross-attention {role}" for role in (QUERY, KEY, VALUE, PROJECTED)))
ORDER += (GATE, INTO, OUT_OF)
TABLES = (POSITION, TOKEN, SEGMENT)
CLASS_TOKEN, DISTILLATION_TOKEN, REGISTERS = "class token", "distillation token", "register tokens"
TOKENS = (CLASS_TOKEN, DISTILLATION_TOKEN, REGISTERS)  # that stand before the patches of an image

FUSED = {  # projections stacked in one layer, by the last word of its name
    **dict.fromkeys(
        ("qkv", "in_proj", "c_attn", "qkv_proj", "to_qkv", "wqkv", "w_pack", "query_key_value", "qkv_linear"),
        (QUERY, KEY, VALUE),
    ),
    "attn_qkv": (QUERY, KEY, VALUE),
    **dict.fromkeys(("kv", "kv_proj", "to_kv", "key_value", "wkv"), (KEY, VALUE)),
    **dict.fromkeys(("qk", "to_qk"), (QUERY, KEY)),
}

WORDS: list[tuple[str, str]] = [
    (r"(q|query|queries)_?(norm|ln|layernorm)", "norm of queries"),
    (r"(k|key|keys)_?(norm|ln|layernorm)", "norm of keys"),
    (r"grn", "response norm"),
    (r"a\.q", QUERY),
    (r"a\.k", KEY),
    (r"a\.v", VALUE),
    (r"(query([._]proj)?|queries|q_?proj|to_q|wq|q_lin|q_linear|projection_query|linear_q|w_q|q_a_proj)", QUERY),
    (r"(key([._]proj)?|keys|k_?proj|to_k|wk|k_lin|k_linear|projection_key|linear_k|w_k)", KEY),
    (r"(value([._]proj)?|values|v_?proj|to_v|wv|v_lin|v_linear|projection_value|linear_v|w_v)", VALUE),
    (
        r"a\.(proj|c_proj|out_?proj|o_?proj|o|wo|out_lin|out|to_out(\.0)?|dense|output\.(dense|proj)|linear_out|projection)",
        PROJECTED,
    ),
    (r"_?se_reduce", REDUCE),
    (r"_?se_expand", EXPAND),
    (r"(se|squeeze_excit\w*|se_module|se_layer)\.(conv_reduce|fc1|reduce|fc\.0|squeeze|down|0)", REDUCE),
    (r"(se|squeeze_excit\w*|se_module|se_layer)\.(conv_expand|fc2|expand|fc\.2|excit\w*|up|2)", EXPAND),
    (r"(\w*word_embed\w*|wte|embed_tokens|tok_emb\w*|token_emb\w*|word_emb\w*|tok_embeddings|shared)", TOKEN),
    (r"(\w*token_type_emb\w*|segment_emb\w*)", SEGMENT),
    (r"(\w*position_?embed\w*|pos_?emb\w*|positional_?emb\w*|wpe|embed_positions|\w*pos_embed\w*)", POSITION),
    (r"(\w*position_embeddings\.position_embedding|pos_drop\.pos_embed)", POSITION),
    (r"(relative_position_bias_table|rel_pos_bias\.\w+|relative_attention_bias)", OFFSET),
    (r"(cls_?token|class_?token|cls|class_?embedding|cls_emb\w*)", CLASS_TOKEN),
    (r"(dist\w*_token)", DISTILLATION_TOKEN),
    (r"(mask_token)", "mask token"),
    (r"(reg\w*_tokens?)", REGISTERS),
    (r"(router(\.\w+)?|\w*moe\w*\.gate|m\.gate)", ROUTER),
    (r"(gate_proj|wi_0|linear_gate|fc1_g|m\.w1)", GATE),
    (
        r"(fc1|fc1_x|c_fc|intermediate\.dense|lin1|linear_?1|up_proj|m\.w3|wi|wi_1|dense_h_to_4h|pwconv1|fc_in|w12|"
        r"gate_up_proj|intermediate_dense|m\.0|m\.dense1|m\.wi)",
        INTO,
    ),
    (
        r"(fc2|m\.c_proj|lin2|linear_?2|down_proj|m\.w2|w3|wo|dense_4h_to_h|pwconv2|fc_out|output_dense|output\.dense|"
        r"m\.[23]|m\.dense2)",
        OUT_OF,
    ),
    (r"(short_?cut\w*|skip_conv\w*|conv_skip|proj_conv)(\.\w+)*", SHORTCUT),
    (r"down_?sample\w*(\.(\d+|conv))?(\.\w+)?", SHORTCUT),
]
"""The roles of layers by the ends of their dotted names: pairs of a regular expression and a role.

Names are in lower case, and the first expression that fits counts. At its beginning, `a\\.` stands for an attention,
and `m\\.` for a feed-forward network, somewhere above. A change of the table counts from the next transfer on.

Examples:
    >>> roles.WORDS.insert(0, (r"(ffn_up)", roles.INTO))
"""


def role(name: str) -> str:
    """The role that a layer's dotted name tells; "" if the name tells none.

    >>> role("encoder.layer.3.attention.self.query")
    'query'
    """
    if _asked != WORDS:  # a user has changed them; compared entry by entry, which are the same objects otherwise
        _asked[:] = WORDS
        _role.cache_clear()
    return _role(name)


def fused(word: str) -> tuple[str, ...]:
    """The roles of the layers that are stacked in one whose name ends in this word; () if none are stacked."""
    return FUSED.get(word, FUSED["qkv"] if word.endswith(("qkv", "in_proj")) else ())


_asked: list[tuple[str, str]] = []  # the WORDS that gave the roles in the cache


@lru_cache(maxsize=2**16)
def _role(name: str) -> str:
    words = ".".join(name.lower().split(".")[-4:])
    found = next((meaning for pattern, meaning in WORDS if _pattern(pattern).search(words)), "")
    return f"cross-attention {found}" if found in PROJECTIONS and CROSS.search(words) else found


@lru_cache(maxsize=512)
def _pattern(words: str) -> re.Pattern:
    """A pattern of WORDS as a regular expression over a whole dotted name."""
    above = {"a": ATTENTION, "m": FEED_FORWARD}
    words = re.sub(r"(^|[(|])([am])\\\.", lambda m: rf"{m[1]}{above[m[2]]}\.(?:\w+\.)*?", words)
    return re.compile(rf"(?:^|\.){words}$" if words.startswith("(") else rf"(?:^|\.)(?:{words})$")
