"""Writes a tiny llama of random weights in the folder format that mlx_lm reads: make_model.py FOLDER.

Its answers mean nothing; what is tested is that the server's bytes are understood."""

import json
import pathlib
import sys

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    "vocab_size": 258, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "bos_token_id": 256, "eos_token_id": 257,
}
TEMPLATE = "{% for m in messages %}<|bos|>{{ m.role }}\n{{ m.content }}<|eos|>{% endfor %}<|bos|>assistant\n"

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
mx.random.seed(7)
names = {field: CONFIG[field] for field in ModelArgs.__dataclass_fields__ if field in CONFIG}
weights = dict(tree_flatten(Model(ModelArgs(**names)).parameters()))
mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
alphabet = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "config.json").write_text(json.dumps(CONFIG))
(folder / "tokenizer_config.json").write_text(json.dumps({
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
    "chat_template": TEMPLATE,
}))
