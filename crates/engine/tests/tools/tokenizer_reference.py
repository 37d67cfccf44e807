"""Writes ../fixtures/tokenizer_reference.json: small vocabularies, a nasty corpus, and its tokens by the reference
implementations: Hugging Face's `tokenizers` for every pre-tokenizer, `sentencepiece` for its two models.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3 protobuf
    python tokenizer_reference.py ../fixtures/tokenizer_reference.json

The byte-level vocabulary is trained without any pre-tokenizer, so that its merges cross every border that a
pre-tokenizer can draw: a border in another place shows in the tokens.
"""
import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

MARKS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]"]
TAGS = ["<think>", "</think>"]
WORDS = ["<table>", "  \t", "ÿé"]

# From each family's tokenizer.json.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + TAIL
QWEN35 = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(expression):
    return pre_tokenizers.Split(Regex(expression), "isolated")


PLAIN_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
PRE_TOKENIZERS = {
    "llama-bpe": [split(LLAMA3), PLAIN_BYTES],
    "smaug-bpe": [split(LLAMA3), PLAIN_BYTES],
    "glm4": [split(LLAMA3), PLAIN_BYTES],
    "qwen2": [split(QWEN2), PLAIN_BYTES],
    "qwen35": [split(QWEN35), PLAIN_BYTES],
    "gpt-2": [GPT2_BYTES],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), GPT2_BYTES],
    "gpt-4o": [split(GPT4O), PLAIN_BYTES],
    "tekken": [split(TEKKEN), PLAIN_BYTES],
    "deepseek-llm": [
        split(r"[\r\n]"),
        split(DEEPSEEK_LETTERS),
        split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        split(r"\s+$"),
        split(r"[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=False),
        PLAIN_BYTES,
    ],
    "deepseek-coder": [
        split(r"[\r\n]"),
        split(r"\s?\p{L}+"),
        split(r"\s?\p{P}+"),
        split(r"[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True),
        PLAIN_BYTES,
    ],
    "deepseek-v3": [split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK3), PLAIN_BYTES],
}
IGNORE_MERGES = {"llama-bpe", "glm4", "tekken"}
COMPOSED = {"qwen2", "qwen35"}


def byte_level(name, vocabulary, merges, marks=(), words=()):
    """The tokenizer of a family, from its words and merges."""
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in IGNORE_MERGES)
    tokenizer = Tokenizer(model)
    if name in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[name])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def characters(vocabulary, merges, marks=()):
    """Gemma's: `transformers/models/gemma/tokenization_gemma.py`."""
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    return tokenizer


def corpus():
    texts = [
        "Hello world", " Hello", "Hello  world", "Hello   world ", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n",
        "\r\n", "\r\n\r\n \r\n", " \n \n", "a\n b\n  c\n\td\n", "x \t y\t\tz  \n\n  w", "end of line   \nnext",
        "trailing spaces    ", "\u00a0nbsp\u00a0\u00a0x", "\u3000ideographic\u3000 space", "\u2028line\u2029sep",
        "tab\tthen  spaces\n\n\n   and more \n", "\x0b\x0c\x1c\x85 odd spaces", "zero\u200bwidth\u200d\u200c\ufeff",
        "1", "12", "123", "1234", "12345", "1234567890", "3.14159 2,718 1e-10 0xFF 1_000", "v1.2.3-rc4", "٣٤٥ ४५६ ⅷ ² ½ ①",
        "100km 5x3=15 2024-02-29T12:34:56Z", "don't can't I'm you're we've he'll she'd it's", "DON'T CAN'T I'M YOU'RE",
        "WE'VE HE'LL SHE'D IT'S 'S 'T 're'VE'll", "'tis rock'n'roll o'clock's 's's", "l'\u017ftat 'ſ",
        "the quick brown fox", "The Quick BROWN fOx camelCaseWord PascalCase XMLHttpRequest snake_case SCREAMING_SNAKE",
        "iPhone eBay McDonald's ÀÉÎ àéî ǅ ǆ", "fn main() { println!(\"{}\", x[0]); } // ok", "if (a<=b&&c!=d||!e) {\n\treturn;\n}",
        "def f(x):\n    return x**2  # comment\n\n\nclass A:\n        pass\n", "#include <stdio.h>\nint a[] = {1,2,3};",
        "https://example.com/path?q=1&b=%20#frag", "mail@example.org ../../etc/passwd C:\\Users\\x", "a/b//c///d\n/e",
        "!!!???...---___***", "(a) [b] {c} <d> \"e\" `f` ~g^ |h|", "$100 €200 £300 ¥400 + - = < > ^ ~ |", "....\n\n!!\n",
        "«quotes» “curly” ‘single’ „low“ …", "—em–en‐hyphen", "Grüße, Äpfel, Straße, façade, naïve", "e\u0301 a\u030a\u0323 o\u0302\u0301",
        "\u0041\u030a Å \u212b ﬁ ﬂ", "Zalgo: h\u0335\u0321e\u0334l\u0338l\u0337o\u0336", "Привет, мир! Ёжик ЩУКА", "Γειά σου Κόσμε Ωμέγα",
        "שלום עולם", "مرحبا بالعالم، كيف؟", "नमस्ते दुनिया क्षत्रिय", "สวัสดีชาวโลก", "வணக்கம் உலகம்", "გამარჯობა", "Բարեւ",
        "你好，世界！今天天气很好。", "東京へようこそ。カタカナ、ひらがな", "안녕하세요 세계", "ㄅㄆㄇ ㄱㄴㄷ", "中文English混合123数字", "繁體字與简体字",
        "𝕳𝖊𝖑𝖑𝖔 𝒲𝑜𝓇𝓁𝒹", "𐍈 𠜎 𒀀", "😀😁🤣", "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇯🇵", "🚀 (normal) 😶‍🌫️ (multiple) ✅", "text🌸text 🌸 1️⃣",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "=" * 80, "-" * 33 + "\n" + "*" * 17,
        "ha" * 40, " " * 50 + "x", "\n" * 20 + "x", "\t" * 9 + "\n", "0" * 30, "ab " * 12, "\ufffd\ufffd", "null\u0000byte\u0001\u001b[0m",
        "\ue000\uf8ff private \U000f0000", "<|im_start|>user\nHi<|im_end|>", "say <|im_end|> now", "<s>[INST] x</s>", "<|im_end", "<think>hm</think> so",
        "<table> a  \tb ÿé ", "mixed <|im_end|><table><think>", "<0x0A> <unk> ▁under▁", "Ünïcödé'S ÀB'S", "I'll'LL", "a'b 1's",
    ]
    return texts


def train_byte_level(texts):
    """Merges over the whole text; then the same with gaps, so that a word exists that merges don't lead to."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PLAIN_BYTES
    texts = [text for text in texts if not any(name in text for name in MARKS + TAGS + WORDS)]
    # A merge needs two occurrences.
    trainer = trainers.BpeTrainer(
        vocab_size=2600, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = [word for word, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [tuple(merge) for merge in model["merges"]]
    # Words that no merge makes: only tokenizers that ignore merges find them.
    words += [word for word in ["Ġquick", "ĠBROWN", "123", "Quick"] if word not in words]
    return words, merges


def train_sentencepiece(texts, kind, **options):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "corpus.txt"
        lines = [line for text in texts for line in text.split("\n") if line.strip() and "\x00" not in line]
        source.write_text("\n".join(lines * 3), encoding="utf-8")
        rules = Path(folder) / "rules.tsv"
        pairs = [("ﬁ", "fi"), ("ﬂ", "fl"), ("①", "1"), ("\t", " "), ("\n", " "), ("\u3000", " "), ("e\u0301", "é"), ("…", "...")]
        code = lambda text: " ".join(f"{ord(character):X}" for character in text)
        rules.write_text("".join(f"{code(a)}\t{code(b)}\n" for a, b in pairs))
        if kind == "unigram":
            options["normalization_rule_tsv"] = str(rules)
        prefix = str(Path(folder) / "model")
        sentencepiece.SentencePieceTrainer.train(
            input=str(source), model_prefix=prefix, model_type=kind, minloglevel=2, hard_vocab_limit=False, **options
        )
        return (Path(folder) / "model.model").read_bytes()


def sentencepiece_case(texts, kind, **options):
    from sentencepiece import sentencepiece_model_pb2 as pb

    blob = train_sentencepiece(texts, kind, **options)
    model = pb.ModelProto.FromString(blob)
    processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    spec = model.normalizer_spec
    return {
        "words": [piece.piece for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "types": [int(piece.type) for piece in model.pieces],
        "unknown": processor.unk_id(),
        "add_space_prefix": spec.add_dummy_prefix,
        "remove_extra_whitespaces": spec.remove_extra_whitespaces,
        "charsmap": list(spec.precompiled_charsmap) if kind == "unigram" else [],
        "ids": [pack(processor.encode(text)) for text in texts],
    }


def character_case(texts):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.train_from_iterator(
        texts[: len(texts) // 2] * 2, trainers.BpeTrainer(vocab_size=900, min_frequency=2, show_progress=False)
    )
    model = json.loads(tokenizer.to_str())["model"]
    learnt = [word for word, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    words = ["<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)] + learnt
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = characters({word: index for index, word in enumerate(words)}, merges)
    return {
        "words": words,
        "types": [2] + [6] * 256 + [1] * len(learnt),
        # GGUF's form; a word may hold a space's stand-in but no space.
        "merges": [" ".join(merge) for merge in merges],
        "unknown": 0,
        "ids": [pack(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts],
    }


def pack(ids):
    return " ".join(map(str, ids))


def main(out):
    texts = corpus()
    words, merges = train_byte_level(texts)
    added = MARKS + TAGS + WORDS
    vocabulary = {word: index for index, word in enumerate(words)}
    families = {}
    for name in PRE_TOKENIZERS:
        # As a template writes: marks are found. As a user writes: only added words are.
        template = byte_level(name, vocabulary, merges, MARKS, TAGS + WORDS)
        user = byte_level(name, {**vocabulary, **{word: len(words) + i for i, word in enumerate(added)}}, merges, (), WORDS)
        families[name] = {
            "template": [pack(template.encode(text, add_special_tokens=False).ids) for text in texts],
            "user": [pack(user.encode(text, add_special_tokens=False).ids) for text in texts],
        }
    reference = {
        "texts": texts,
        "byte_level": {
            "words": words + added,
            "types": [1] * len(words) + [3] * len(MARKS) + [4] * (len(TAGS) + len(WORDS)),
            "merges": [" ".join(merge) for merge in merges],
            "families": families,
        },
        "characters": character_case(texts),
        "spm": sentencepiece_case(texts, "bpe", vocab_size=1400, byte_fallback=True, normalization_rule_name="identity",
                                  remove_extra_whitespaces=False, character_coverage=0.98),
        "unigram": sentencepiece_case(texts, "unigram", vocab_size=700, character_coverage=0.98),
    }
    Path(out).write_text(json.dumps(reference, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
