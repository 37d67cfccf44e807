"""Writes the starter model in the folder format that mlx_lm reads: make_starter.py GGUF FOLDER.

In float32, which a CPU computes fastest: 2.5 GB."""

import json
import pathlib
import re
import sys

import mlx.core as mx
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

# https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py, read backwards.
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
# Qwen 2's pre-tokenizer.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL, USER_DEFINED = 3, 4

reader, folder = GGUFReader(sys.argv[1]), pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)


def field(name):
    return reader.fields[name].contents()


def published(name):
    if name in WHOLE:
        return WHOLE[name]
    layer, part, kind = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(\w+)", name).groups()
    return f"model.layers.{layer}.{PARTS[part]}.{kind}"


weights = {published(tensor.name): mx.array(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
words, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
eos = field("tokenizer.ggml.eos_token_id")
(folder / "config.json").write_text(json.dumps({
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": len(words), "eos_token_id": eos,
    "hidden_size": field("qwen2.embedding_length"), "intermediate_size": field("qwen2.feed_forward_length"),
    "num_hidden_layers": field("qwen2.block_count"), "num_attention_heads": field("qwen2.attention.head_count"),
    "num_key_value_heads": field("qwen2.attention.head_count_kv"), "rope_theta": field("qwen2.rope.freq_base"),
    "rms_norm_eps": field("qwen2.attention.layer_norm_rms_epsilon"),
    "max_position_embeddings": field("qwen2.context_length"), "tie_word_embeddings": "lm_head.weight" not in weights,
}))
merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
tokenizer.normalizer = normalizers.NFC()
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
])
tokenizer.decoder = decoders.ByteLevel()
added = [(word, kind) for word, kind in zip(words, kinds) if kind in (CONTROL, USER_DEFINED)]
tokenizer.add_tokens([AddedToken(word, special=kind == CONTROL, normalized=False) for word, kind in added])
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({
    "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": words[eos],
    "chat_template": field("tokenizer.chat_template"),
}))
