use testkit::gguf::{GgufBuilder, tiny_model};

use super::*;

fn load(file: &GgufBuilder) -> Result<Tokenizer, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::load(&Gguf::open(&file.write(folder.path(), "m.gguf").unwrap())?)
}

fn decode(tokenizer: &Tokenizer, tokens: &[TokenId]) -> String {
    let mut detokenizer = tokenizer.detokenizer();
    let mut text: String = tokens.iter().map(|token| detokenizer.push(tokenizer.piece(*token))).collect();
    text.push_str(&detokenizer.finish());
    text
}

/// A SentencePiece vocabulary: control tokens, 256 bytes, and a few pieces with scores.
fn spm() -> GgufBuilder {
    let mut words = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut types = vec![2, 3, 3];
    words.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    types.extend([6; 256]);
    let pieces = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "▁h"];
    words.extend(pieces.map(str::to_owned));
    types.extend([1; 11]);
    let scores: Vec<f32> = (0..words.len()).map(|id| -(id as f32)).collect();
    GgufBuilder::new()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &words)
        .i32s("tokenizer.ggml.token_type", &types)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
}

fn words(tokenizer: &Tokenizer, tokens: &[TokenId]) -> Vec<String> {
    tokens.iter().map(|token| String::from_utf8_lossy(tokenizer.piece(*token)).into_owned()).collect()
}

#[test]
fn bpe_merges_and_finds_special_tokens() {
    let tokenizer = load(&tiny_model(1)).unwrap();
    let tokens = tokenizer.encode_prompt("<|im_start|>hello world<|im_end|>").unwrap();
    assert_eq!(words(&tokenizer, &tokens[1..tokens.len() - 1]), ["hello", " w", "o", "r", "l", "d"]);
    assert_eq!(tokenizer.special_text(tokens.first().copied()), "<|im_start|>");
    assert!(tokenizer.ends_generation(*tokens.last().unwrap()));
    assert_eq!(decode(&tokenizer, &tokens), "hello world");
}

#[test]
fn any_text_survives_the_way_there_and_back() {
    let text = "Grüße aus 東京 🌸\n\t 'quoted' 12345  end ";
    let bpe = load(&tiny_model(1)).unwrap();
    assert_eq!(decode(&bpe, &bpe.encode_prompt(text).unwrap()), text);
    let spm = load(&spm()).unwrap();
    assert_eq!(decode(&spm, &spm.encode_prompt(text).unwrap()), text);
}

#[test]
fn spm_merges_the_best_pair_first_and_spells_the_rest_in_bytes() {
    let tokenizer = load(&spm()).unwrap();
    let tokens = tokenizer.encode_prompt("hello h x").unwrap();
    assert_eq!(tokens[0], 1, "a beginning comes first");
    assert_eq!(words(&tokenizer, &tokens[1..]), [" hello", " h", " ", "x"]);
    let tokens = tokenizer.encode_prompt("<s>ö").unwrap();
    assert_eq!(tokens, [1, 3 + 0xc3, 3 + 0xb6], "no second beginning, and no space after a special token");
}

#[test]
fn half_a_character_is_never_given_out() {
    let tokenizer = load(&tiny_model(1)).unwrap();
    let mut detokenizer = tokenizer.detokenizer();
    let given: Vec<String> = "a🌸b".bytes().map(|byte| detokenizer.push(&[byte])).collect();
    assert_eq!(given, ["a", "", "", "", "🌸", "b"]);
    assert_eq!(detokenizer.push(&[0xf0, 0x9f]), "");
    assert_eq!(detokenizer.push(b"x"), "\u{fffd}x");
    assert_eq!(detokenizer.push(&[0xe6]), "");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
}

#[test]
fn an_unknown_pre_tokenizer_is_refused_by_name() {
    let error = load(&tiny_model(1).text("tokenizer.ggml.model.other", "x")).err();
    assert!(error.is_none());
    let file = GgufBuilder::new()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "jais")
        .texts("tokenizer.ggml.tokens", &["a"]);
    let error = load(&file).err().unwrap().to_string();
    assert_eq!(error, "the tokenizer in the file cannot be used: its pre-tokenizer `jais` is not supported yet");
}
