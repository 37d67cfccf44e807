use regex::Regex;

use crate::LoadError;

/// Cuts text into the pieces within which a byte-pair tokenizer merges: the pre-tokenizer that a file names.
pub(super) struct Splitter {
    stages: Vec<Stage>,
}

/// One expression. Its matches, and what lies between them, are the pieces that the next one sees.
struct Stage {
    regex: Regex,
    spaces: Spaces,
}

/// How a match of nothing but white space before a word ends. The published expressions say it with `\s+(?!\S)`, for
/// which one needs a backtracking engine; these run in time linear in the text, whatever the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spaces {
    Stay,
    /// The last one belongs to what follows.
    LeaveLast,
    /// As above, except after a line break.
    LeaveLastInLine,
}

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Clone, Copy)]
pub(super) struct PreTokenizer {
    stages: &'static [&'static str],
    /// A piece that is a word of the vocabulary is taken whole, whether or not merges lead to it.
    pub(super) ignores_merges: bool,
    /// Text is brought into Unicode's form C first. GGUF doesn't tell; the families' `tokenizer.json` does.
    pub(super) is_composed: bool,
    /// The model wants a beginning where the file doesn't say.
    pub(super) adds_bos: bool,
}

// The expressions are those of each family's `tokenizer.json`; which name means which one is llama.cpp's choice.
pub(crate) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(crate) const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
// Six letters are escaped: they are not stable under Unicode normalization, which an editor might apply.
const DEEPSEEK_LLM: &[&str] = &[
    r"[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌῐ-\u{1FD3}ῖ-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
];
const DEEPSEEK_CODER: &[&str] = &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", DIGIT];
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
];
const DEFAULT: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"];

impl PreTokenizer {
    const fn new(stages: &'static [&'static str]) -> Self {
        Self { stages, ignores_merges: false, is_composed: false, adds_bos: false }
    }

    const fn ignoring_merges(self) -> Self {
        Self { ignores_merges: true, ..self }
    }

    const fn composed(self) -> Self {
        Self { is_composed: true, ..self }
    }

    const fn with_bos(self) -> Self {
        Self { adds_bos: true, ..self }
    }

    /// # Errors
    /// Names a pre-tokenizer that isn't known.
    pub(super) fn named(name: Option<&str>) -> Result<Self, LoadError> {
        Ok(match name {
            None | Some("default") => Self::new(DEFAULT),
            Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2") => {
                Self::new(&[LLAMA3]).ignoring_merges().with_bos()
            }
            Some("smaug-bpe" | "dbrx" | "chatglm-bpe") => Self::new(&[LLAMA3]),
            Some("glm4" | "glm5") => Self::new(&[LLAMA3]).ignoring_merges(),
            Some("qwen2" | "deepseek-r1-qwen" | "megrez") => Self::new(&[QWEN2]).composed(),
            Some("qwen35") => Self::new(&[QWEN35]).composed(),
            Some("stablelm2" | "hunyuan" | "solar-open" | "grok-2") => Self::new(&[QWEN2]),
            Some("gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "exaone4") => {
                Self::new(&[GPT2])
            }
            Some("smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b") => {
                Self::new(&[DIGIT, GPT2])
            }
            Some("gpt-4o" | "llama4" | "kanana2" | "minimax-m2") => Self::new(&[GPT4O]),
            Some("tekken") => Self::new(&[TEKKEN]).ignoring_merges().with_bos(),
            Some("deepseek-llm") => Self::new(DEEPSEEK_LLM),
            Some("deepseek-coder") => Self::new(DEEPSEEK_CODER),
            Some("deepseek-v3" | "joyai-llm" | "hunyuan-dense") => Self::new(DEEPSEEK_V3),
            Some(other) => {
                return Err(LoadError::Tokenizer(format!("its pre-tokenizer `{other}` is not supported yet")));
            }
        })
    }
}

impl Splitter {
    pub(super) fn new(pre: PreTokenizer) -> Self {
        Self { stages: pre.stages.iter().map(|expression| Stage::new(expression)).collect() }
    }

    /// Calls `each` for every piece of `text`, in order; together they are `text`.
    pub(super) fn split<'a>(&self, text: &'a str, each: &mut dyn FnMut(&'a str)) {
        split(&self.stages, text, each);
    }
}

fn split<'a>(stages: &[Stage], text: &'a str, each: &mut dyn FnMut(&'a str)) {
    let Some((stage, later)) = stages.split_first() else {
        if !text.is_empty() {
            each(text);
        }
        return;
    };
    let mut at = 0;
    while let Some(found) = stage.regex.find_at(text, at) {
        let end = stage.end_of(found.as_str(), found.start(), text.len());
        split(later, &text[at..found.start()], each);
        split(later, &text[found.start()..end], each);
        at = end;
    }
    split(later, &text[at..], each);
}

impl Stage {
    fn new(published: &str) -> Self {
        const LOOKAHEAD: &str = r"\s+(?!\S)|\s+";
        let spaces = match published.contains(LOOKAHEAD) {
            false => Spaces::Stay,
            true if published.contains(r"\s*[\r\n]+|") => Spaces::LeaveLastInLine,
            true => Spaces::LeaveLast,
        };
        let regex = Regex::new(&published.replace(LOOKAHEAD, r"\s+")).expect("each expression is compiled in a test");
        Self { regex, spaces }
    }

    /// Where the match `found` at `start` ends in a text of `len` bytes.
    fn end_of(&self, found: &str, start: usize, len: usize) -> usize {
        let end = start + found.len();
        let is_before_word = end < len && self.spaces != Spaces::Stay && found.trim_start().is_empty();
        match found.chars().next_back() {
            Some('\r' | '\n') if self.spaces == Spaces::LeaveLastInLine => end,
            Some(last) if is_before_word && found.len() > last.len_utf8() => end - last.len_utf8(),
            _ => end,
        }
    }
}
