use candle_core::Device;
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::folder::{SafetensorsBuilder, StoredAs, write_tiny_folder};
use testkit::gguf::tiny_model;

use super::*;
use crate::gguf::Weights;
use crate::models;
use crate::read_header;
use crate::tokenizer::Tokenizer;

fn tiny(stored_as: StoredAs, shards: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_folder(folder.path(), 1, stored_as, shards).unwrap();
    folder
}

fn logits(path: &Path) -> Vec<f32> {
    let model = models::load(&Gguf::open(path).unwrap(), &Device::Cpu, &mut |_, _| {}).unwrap().model;
    let part =
        models::Part { tokens: &[3, 1, 4, 1, 5], cache: &mut model.new_cache(crate::KvType::DEFAULT), logits: 1 };
    model.forward(&mut [part]).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Changes a JSON file of the folder.
fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(name);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[track_caller]
fn check_refused(folder: &Path, sentence: &str) {
    let refused = read_header(folder).and_then(|header| header.check_supported()).unwrap_err().to_string();
    assert!(refused.contains(sentence), "`{refused}` doesn't say `{sentence}`");
}

#[track_caller]
fn check_config_refused(key: &str, value: Value, sentence: &str) {
    let folder = tiny(StoredAs::F32, 1);
    edit(folder.path(), "config.json", |config| config[key] = value);
    check_refused(folder.path(), sentence);
}

#[test]
fn a_folder_is_the_model_that_its_gguf_is() {
    let (folder, shards) = (tiny(StoredAs::F32, 1), tiny(StoredAs::F32, 3));
    let gguf = tiny_model(1).write(folder.path(), "tiny.gguf").unwrap();
    for folder in [folder.path(), shards.path()] {
        let (header, same) = (read_header(folder).unwrap(), read_header(&gguf).unwrap());
        header.check_supported().unwrap();
        assert_eq!(header.architecture, "llama");
        assert_eq!((header.parameters, header.weight_bytes), (same.parameters, same.weight_bytes));
        assert_eq!((header.context_len, header.quantization.as_str()), (same.context_len, "F32"));
        assert!(header.chat_template.is_some());
        assert_eq!(header.footprint(512, crate::KvType::DEFAULT), same.footprint(512, crate::KvType::DEFAULT));
        let on_disk: u64 = header.files.iter().map(|file| file.metadata().unwrap().len()).sum();
        assert_eq!(header.file_bytes.0, on_disk);
        let (ours, theirs) = (logits(folder), logits(&gguf));
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-4));

        let tokens = |path: &Path| {
            let tokenizer = Tokenizer::load(&Gguf::open(path).unwrap()).unwrap();
            assert_eq!(
                (tokenizer.special_text(tokenizer.bos), tokenizer.special_text(tokenizer.eos)),
                ("<|endoftext|>", "<|im_end|>")
            );
            tokenizer.encode_prompt("<|im_start|>user\nhello wörld<|im_end|>", None)
        };
        assert_eq!(tokens(folder), tokens(&gguf));
    }
}

#[test]
fn bf16_weights_stay_in_the_file() {
    let folder = tiny(StoredAs::Bf16, 2);
    let header = read_header(folder.path()).unwrap();
    assert_eq!((header.quantization.as_str(), header.weight_bytes.0), ("BF16", 2 * header.parameters));
    let gguf = Gguf::open(folder.path()).unwrap();
    assert!(gguf.header.tensors.values().all(|tensor| tensor.change.is_none()));
    let rounded = logits(folder.path());
    assert!(rounded.iter().zip(logits(tiny(StoredAs::F32, 1).path())).all(|(a, b)| (a - b).abs() < 0.5));
}

#[test]
fn folders_that_are_no_models_say_what_they_lack() {
    let folder = tempfile::tempdir().unwrap();
    check_refused(folder.path(), "not a model folder: it has no `config.json`");
    fs::write(folder.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    assert!(!is_model_folder(folder.path()));
    check_refused(folder.path(), "it has no `model.safetensors`");
    fs::write(folder.path().join("config.json"), "[]").unwrap();
    check_refused(folder.path(), "`config.json` cannot be used");
}

#[test]
fn what_only_gguf_can_be_read_in_is_refused_with_that_advice() {
    check_config_refused("quantization", json!({ "bits": 4 }), "quantized for MLX; take a GGUF file");
    check_config_refused("quantization_config", json!({ "quant_method": "fp8" }), "in the way `fp8`");
    check_config_refused(
        "model_type",
        json!("mamba"),
        "folders of the family `mamba` are not read yet; take a GGUF file",
    );
    check_config_refused("architectures", json!(["LlamaForSequenceClassification"]), "writes no text");
    check_config_refused("hidden_act", json!("relu"), "the activation `relu` is not supported");
    check_config_refused("rope_scaling", json!({ "rope_type": "dynamic" }), "rope scaling `dynamic`");
    check_config_refused("hidden_size", json!(null), "`config.json` cannot be used: it lacks `hidden_size`");
    check_config_refused("num_hidden_layers", json!(1_u64 << 60), "layers is not supported");
    let folder = tiny(StoredAs::F32, 1);
    for (name, dtype, sentence) in [
        ("lm_head.weight", "F8_E4M3", "tensor `lm_head.weight` has the type F8_E4M3"),
        ("model.layers.0.self_attn.q_proj.weight_scale", "F32", "models of its family don't have"),
    ] {
        let bytes: &[u8] = if dtype == "F32" { &[0; 4] } else { &[0] };
        let file = SafetensorsBuilder::new().tensor(name, dtype, &[1], bytes).build();
        fs::write(folder.path().join(WEIGHTS), file).unwrap();
        check_refused(folder.path(), sentence);
    }
}

#[test]
fn shards_are_all_there_and_fit_together() {
    let folder = tiny(StoredAs::F32, 3);
    let shard = folder.path().join("model-00002-of-00003.safetensors");
    let content = fs::read(&shard).unwrap();
    fs::remove_file(&shard).unwrap();
    check_refused(folder.path(), "part 2 of 3 is missing: `model-00002-of-00003.safetensors`");
    fs::write(&shard, &content[..content.len() - 1]).unwrap();
    check_refused(folder.path(), "the download stopped at 99 %");
    fs::write(&shard, b"version https://git-lfs.github.com/spec/v1\n").unwrap();
    check_refused(folder.path(), "git lfs pull");
    fs::write(&shard, SafetensorsBuilder::new().build()).unwrap();
    check_refused(folder.path(), "which `model.safetensors.index.json` says is in it");
    fs::copy(folder.path().join("model-00001-of-00003.safetensors"), &shard).unwrap();
    check_refused(folder.path(), "that another part has");
    for elsewhere in ["../../etc/passwd", "/etc/passwd", "..", ""] {
        edit(folder.path(), INDEX, |index| index["weight_map"] = json!({ "a": elsewhere }));
        check_refused(folder.path(), "is not a file beside it");
    }
}

#[test]
fn a_lying_header_is_refused() {
    let file = |json: &str| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0; 16]].concat();
    let refused = |file: &[u8]| header::parse(file).unwrap_err().to_string();
    let one = |entry: &str| refused(&file(&format!(r#"{{"a": {entry}}}"#)));
    assert!(refused(&u64::MAX.to_le_bytes()).contains("a header of 18446744073709551615 bytes"));
    assert!(refused(&[9, 0, 0, 0, 0, 0, 0, 0]).contains("inside its header"));
    assert!(refused(&[1]).contains("inside its header"));
    assert!(refused(&file("{")).contains("a header that cannot be read"));
    assert!(one(r#"{"dtype": "F32", "shape": [4], "data_offsets": [0, 15]}"#).contains("has 15 bytes"));
    assert!(one(r#"{"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}"#).contains("ends before it begins"));
    assert!(one(r#"{"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}"#).contains("fetch it again"));
    assert!(one(r#"{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#).contains("a dimension of 0"));
    assert!(one(r#"{"dtype": "F32", "shape": [1,1,1,1,1,1,1,1,4], "data_offsets": [0, 16]}"#).contains("9 dimensions"));
    assert!(
        one(r#"{"dtype": "F32", "shape": [4294967296, 4294967296, 4], "data_offsets": [0, 16]}"#).contains("larger")
    );
    assert!(
        one(r#"{"dtype": "I8", "shape": [1], "data_offsets": [18446744073709551614, 18446744073709551615]}"#)
            .contains("beyond the end")
    );
    let entry = r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;
    assert!(refused(&file(&format!(r#"{{"a": {entry}, "a": {entry}}}"#))).contains("a second time"));
    assert!(refused(&file(&format!(r#"{{"a": {entry}, "b": {entry}}}"#))).contains("over each other"));
}

#[test]
fn ties_and_lists_of_ends_are_as_the_configuration_has_them() {
    let folder = tiny(StoredAs::F32, 1);
    edit(folder.path(), "config.json", |config| config["tie_word_embeddings"] = json!(true));
    fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": [263, 261], "do_sample": true, "temperature": 0.6, "top_k": 20}"#,
    )
    .unwrap();
    let gguf = Gguf::open(folder.path()).unwrap();
    assert!(!gguf.header.tensors.contains_key("output.weight"));
    let metadata = gguf.metadata();
    let number = |key: &str| metadata.unsigned(key);
    assert_eq!(number("tokenizer.ggml.eos_token_id"), Some(263));
    assert_eq!(number("tokenizer.ggml.eot_token_id"), Some(261));
    assert_eq!((metadata.float("general.sampling.temp"), number("general.sampling.top_k")), (Some(0.6), Some(20)));
}

#[test]
fn a_tokenizer_of_characters_becomes_one_that_merges_by_score() {
    let folder = tiny(StoredAs::F32, 1);
    let words = ["<unk>", "▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "<0x77>"];
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    edit(folder.path(), "tokenizer.json", |tokenizer| {
        tokenizer["pre_tokenizer"] = Value::Null;
        tokenizer["normalizer"] = json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }] });
        tokenizer["model"] = json!({
            "type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocabulary,
            "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["▁", "hello"]],
        });
    });
    let load = || Tokenizer::load(&Gguf::open(folder.path()).unwrap()).unwrap();
    // <|im_start|> is the 262nd word of the model.
    assert_eq!(load().encode_prompt("hellow<|im_start|>hel", None)[1..], [10, 11, 262, 6, 4]);
    // The same vocabulary without the space at the beginning, as SentencePiece writes it.
    let mut model = b"\x12\x02\x18\x02\x1a\x02\x18\x00".to_vec();
    for (id, word) in words.iter().enumerate() {
        let kind = if id == 0 {
            2
        } else if word.starts_with("<0x") {
            6
        } else {
            1
        };
        let mut piece = [&[0x0a, word.len() as u8], word.as_bytes(), &[0x15]].concat();
        piece.extend((-(id as f32)).to_le_bytes());
        piece.extend([0x18, kind]);
        model.extend([&[0x0a, piece.len() as u8], piece.as_slice()].concat());
    }
    fs::write(folder.path().join("tokenizer.model"), model).unwrap();
    assert_eq!(load().encode_prompt("hellow<|im_start|>hel", None)[1..], [9, 11, 262, 6, 4]);
}

#[test]
fn pre_tokenizers_are_known_by_what_they_do() {
    let folder = tiny(StoredAs::F32, 1);
    let name = |steps: Value, composes: bool| {
        edit(folder.path(), "tokenizer.json", |tokenizer| {
            tokenizer["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": steps });
            tokenizer["normalizer"] = if composes { json!({ "type": "NFC" }) } else { Value::Null };
        });
        Gguf::open(folder.path()).map(|gguf| gguf.metadata().text("tokenizer.ggml.pre").unwrap())
    };
    let bytes = |has_own: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": has_own });
    let split =
        |expression: &str| json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated" });
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    assert_eq!(name(json!([split(qwen), bytes(false)]), true).unwrap(), "qwen2");
    assert_eq!(name(json!([split(qwen), bytes(false)]), false).unwrap(), "stablelm2");
    assert_eq!(name(json!([{ "type": "Digits", "individual_digits": true }, bytes(true)]), false).unwrap(), "smollm");
    let refused = name(json!([split("."), bytes(false)]), false).unwrap_err().to_string();
    assert!(refused.contains("cuts text in a way that is not known; take a GGUF file"), "{refused}");
}

#[test]
fn the_template_is_the_one_that_is_named_default() {
    let folder = tiny(StoredAs::F32, 1);
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    assert!(read_header(folder.path()).unwrap().chat_template.is_none());
    edit(folder.path(), "tokenizer_config.json", |settings| {
        settings["chat_template"] =
            json!([{ "name": "tool_use", "template": "a" }, { "name": "default", "template": "b" }]);
    });
    let template = || Gguf::open(folder.path()).unwrap().metadata().text("tokenizer.chat_template");
    assert_eq!(template().as_deref(), Some("b"));
    fs::write(folder.path().join("chat_template.jinja"), "c").unwrap();
    assert_eq!(template().as_deref(), Some("c"));
}

/// Loads what can be loaded of a folder.
fn use_all(folder: &Path) {
    let Ok(gguf) = Gguf::open(folder) else { return };
    let _ = crate::header::ModelHeader::from_gguf(&gguf)
        .map(|header| header.footprint(usize::MAX >> 1, crate::KvType::DEFAULT).total());
    let _ = Tokenizer::load(&gguf);
    let mut ignore = |_, _| {};
    let mut weights = Weights::new(&gguf, &Device::Cpu, &mut ignore);
    for (name, tensor) in &gguf.header.tensors {
        let _ = weights.unpacked(name, &tensor.shape);
    }
    let _ = models::load(&gguf, &Device::Cpu, &mut |_, _| {});
}

fn mutated(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, byte) in changes {
        let at = at % bytes.len();
        bytes[at] = *byte;
    }
    bytes
}

/// What a configuration may say in place of what it should.
fn any_value() -> impl Strategy<Value = Value> {
    let numbers = prop_oneof![Just(0_u64), 1_u64..70, Just(1 << 20), Just(1 << 40), Just(u64::MAX)];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        numbers.clone().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::collection::vec(numbers, 0..5).prop_map(Value::from),
        prop_oneof![
            Just("llama3"),
            Just("yarn"),
            Just("longrope"),
            Just("gemma3_text"),
            Just("gpt_oss"),
            Just("llama4")
        ]
        .prop_map(Value::from),
    ]
}

const KEYS: [&str; 18] = [
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "partial_rotary_factor",
    "sliding_window",
    "layer_types",
    "num_local_experts",
    "text_config",
    "eos_token_id",
    "vocab_size",
    "intermediate_size_mlp",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_mutated_file_is_read_or_refused(
        which in 0_usize..6,
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<usize>()),
    ) {
        let folder = tiny(StoredAs::F32, 1);
        let names =
            [WEIGHTS, CONFIG, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", WEIGHTS];
        let path = folder.path().join(names[which]);
        let mut content = fs::read(&path).unwrap();
        if which == 0 {
            // Only the header, where every byte counts.
            let weights = content.split_off(3_000);
            content = mutated(content, &changes);
            content.extend(weights);
        } else {
            content = mutated(content, &changes);
        }
        content.truncate(cut.map_or(usize::MAX, |cut| cut % content.len()));
        fs::write(&path, content).unwrap();
        use_all(folder.path());
    }

    #[test]
    fn any_configuration_is_read_or_refused(
        values in prop::collection::vec((0_usize..KEYS.len(), any_value()), 1..4),
        scaling in prop::option::of((any_value(), any_value(), any_value(), any_value())),
    ) {
        let folder = tiny(StoredAs::F32, 1);
        edit(folder.path(), CONFIG, |config| {
            for (key, value) in values {
                config[KEYS[key]] = value;
            }
            if let Some((kind, factor, low, original)) = scaling {
                config["rope_parameters"] = json!({
                    "rope_type": kind, "factor": factor, "low_freq_factor": low, "high_freq_factor": 4,
                    "original_max_position_embeddings": original, "long_factor": low, "short_factor": low,
                });
            }
        });
        use_all(folder.path());
    }

    #[test]
    fn a_mutated_header_stays_within_the_file(
        changes in prop::collection::vec((0_usize..600, any::<u8>()), 1..6),
    ) {
        let file = SafetensorsBuilder::new()
            .tensor("a", "F32", &[2, 3], &[0; 24])
            .tensor("b", "BF16", &[4], &[0; 8])
            .tensor("c", "I64", &[1], &[0; 8]);
        let file = mutated(file.build(), &changes);
        if let Ok(tensors) = header::parse(&file) {
            for tensor in tensors.values() {
                prop_assert!(tensor.start + tensor.bytes <= file.len());
            }
            prop_assert!(tensors.len() <= file.len());
        }
    }
}
