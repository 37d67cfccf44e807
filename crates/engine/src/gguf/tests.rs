use std::io::Write;

use chat::Bytes;
use proptest::prelude::*;
use testkit::gguf::{GgufBuilder, tiny_model};

use super::parse::Header;
use super::*;
use crate::LoadError;

fn parse(file: &[u8]) -> Result<Header, LoadError> {
    Header::parse(file)
}

#[track_caller]
fn check_refused(file: &[u8], sentence: &str) {
    let error = parse(file).unwrap_err().to_string();
    assert!(error.contains(sentence), "`{error}` doesn't say `{sentence}`");
}

#[test]
fn a_whole_file_is_read() {
    let header = parse(&tiny_model(1).build()).unwrap();
    assert_eq!(header.metadata.text("general.name").as_deref(), Some("Tiny"));
    assert_eq!(header.metadata.unsigned("llama.context_length"), Some(512));
    let tensor = &header.tensors["blk.0.ffn_down.weight"];
    assert_eq!(
        (tensor.shape.as_slice(), tensor.bytes, tensor.tensor_type.name()),
        (&[64, 128][..], 64 * 128 * 4, "F32")
    );
    assert_eq!(tensor.start % 32, 0);
    assert_eq!(header.quantization(), "F32");
}

#[test]
fn version_2_is_read_and_others_are_refused() {
    let mut file = tiny_model(1).build();
    file[4] = 2;
    parse(&file).unwrap();
    file[4] = 1;
    check_refused(&file, "GGUF version 1 is not supported");
    file[4] = 4;
    check_refused(&file, "GGUF version 4 is not supported");
    file[4..8].copy_from_slice(&3_u32.to_be_bytes());
    check_refused(&file, "big-endian");
}

#[test]
fn other_files_are_not_gguf() {
    check_refused(b"PK\x03\x04 a zip", r"it starts with `PK\x03\x04`");
    check_refused(b"<html>Not found</html>", "it starts with `<htm`");
    check_refused(b"GG", "the file ends at byte 2");
}

#[test]
fn a_stopped_download_is_told_with_its_size() {
    let file = tiny_model(1).build();
    let cut = file.len() * 61 / 100;
    match parse(&file[..cut]).unwrap_err() {
        LoadError::Truncated { at, expected } => {
            assert_eq!((at, expected), (Bytes(cut as u64), Some(Bytes(file.len() as u64))));
        }
        other => panic!("{other}"),
    }
    check_refused(&file[..cut], "the download stopped at 60 %; fetch it again");
    for cut in 4..file.len() {
        let error = parse(&file[..cut]).unwrap_err();
        assert!(matches!(error, LoadError::Truncated { .. }), "cut at {cut}: {error}");
    }
    check_refused(&file[..100], "inside its header");
}

#[test]
fn nonsense_is_refused_by_name() {
    check_refused(
        &GgufBuilder::new().tensor("a", &[1], &[0.0]).tensor("a", &[1], &[0.0]).build(),
        "the tensor `a` a second",
    );
    check_refused(&GgufBuilder::new().u32("k", 1).u32("k", 2).build(), "the key `k` a second time");
    check_refused(&GgufBuilder::new().u32("general.alignment", 48).build(), "an alignment of 48");
    check_refused(
        &GgufBuilder::new().raw_tensor("w", &[32], 99, vec![0; 32]).build(),
        "`w` is packed as type 99 (unknown)",
    );
    check_refused(&GgufBuilder::new().raw_tensor("w", &[33], 2, vec![0; 64]).build(), "rows of 33 weights, which Q4_0");
    check_refused(&GgufBuilder::new().raw_tensor("w", &[1 << 40, 1 << 40], 0, vec![]).build(), "dimension");
    check_refused(&GgufBuilder::new().raw_tensor("w", &[0], 0, vec![]).build(), "a dimension of 0");
}

#[test]
fn a_count_larger_than_the_file_allocates_nothing() {
    let mut file = tiny_model(1).build();
    file[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    check_refused(&file, "more than the rest of the file can hold");
}

#[test]
fn types_that_were_removed_from_the_format_are_refused_by_name() {
    let file = GgufBuilder::new().raw_tensor("w", &[32], 31, vec![0; 18]).build();
    check_refused(&file, "`w` is packed as Q4_0_4_4 (removed from GGUF), which is not supported");
}

#[test]
fn an_architecture_we_cannot_run_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = GgufBuilder::new().text("general.architecture", "mamba").write(folder.path(), "m.gguf").unwrap();
    let header = crate::read_header(&path).unwrap();
    assert_eq!(header.check_supported().unwrap_err().to_string(), "architecture `mamba` is not supported yet");
}

#[test]
fn the_header_of_a_huge_file_needs_only_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.gguf");
    // One tensor of 40 GB, of which the file system stores nothing.
    let header = GgufBuilder::new()
        .text("general.architecture", "llama")
        .raw_tensor("w", &[1024 * 1024, 10 * 1024], 0, vec![])
        .build();
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(header.len() as u64 + 64 + (40 << 30)).unwrap();
    let header = crate::read_header(&path).unwrap();
    assert_eq!(header.weight_bytes, Bytes::gib(40));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_truncated_file_is_an_error_and_never_a_panic(len in 0_usize..12_000) {
        let file = tiny_model(1).build();
        prop_assert!(parse(&file[..len.min(file.len() - 1)]).is_err());
    }

    #[test]
    fn a_mutated_header_is_read_within_the_file_or_refused(
        changes in prop::collection::vec((0_usize..12_000, any::<u8>()), 1..8),
    ) {
        let mut file = tiny_model(1).build();
        for (at, byte) in changes {
            file[at] = byte;
        }
        if let Ok(header) = parse(&file) {
            for tensor in header.tensors.values() {
                prop_assert!(tensor.start + tensor.bytes <= file.len());
            }
            let held: usize = header.tensors.keys().map(String::len).sum();
            prop_assert!(held <= file.len());
            // Arrays are decoded later, out of the same bytes.
            for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type"] {
                if let Some(array) = header.metadata.array(key) {
                    prop_assert!(array.len() <= file.len());
                    let _ = (array.texts(&file), array.numbers(&file));
                }
            }
        }
    }

    /// The weights of a model, of which each matrix has a type of its own.
    #[test]
    fn a_file_of_any_types_loads_or_is_refused(
        ids in prop::collection::vec(0_u32..43, 1..4),
        changes in prop::collection::vec((0_usize..2_000, any::<u8>()), 0..3),
    ) {
        let mut file = GgufBuilder::new().text("general.architecture", "llama").u32("llama.block_count", 1);
        for (i, id) in ids.into_iter().enumerate() {
            file = file.raw_tensor(&format!("blk.{i}.w"), &[2, 256], id, vec![0xa5; 2_048]);
        }
        let mut file = file.build();
        for (at, byte) in changes {
            file[at % 700] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, &file).unwrap();
        if let Ok(gguf) = Gguf::open(&path) {
            let _ = crate::header::ModelHeader::from_gguf(&gguf).map(|header| header.footprint(usize::MAX >> 1, crate::KvType::DEFAULT).total());
            let mut ignore = |_, _| {};
            let mut weights = Weights::new(&gguf, &candle_core::Device::Cpu, &mut ignore);
            for (name, tensor) in &gguf.header.tensors {
                let _ = weights.unpacked(name, &tensor.shape);
                let _ = weights.integers(name, &tensor.shape);
                if let [rows, columns] = *tensor.shape {
                    let _ = (weights.table(name, rows, columns), weights.matrix(name, rows, columns));
                }
                if let [experts, rows, columns] = *tensor.shape {
                    let _ = weights.experts(name, experts, rows, columns);
                }
            }
        }
    }

    #[test]
    fn a_mutated_file_loads_or_is_refused(changes in prop::collection::vec((0_usize..12_000, any::<u8>()), 1..4)) {
        let mut file = tiny_model(1).build();
        for (at, byte) in changes {
            file[at] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, &file).unwrap();
        if let Ok(gguf) = Gguf::open(&path) {
            let _ = crate::header::ModelHeader::from_gguf(&gguf).map(|header| header.footprint(usize::MAX >> 1, crate::KvType::DEFAULT).total());
            let _ = crate::tokenizer::Tokenizer::load(&gguf);
            let _ = crate::models::load(&gguf, &candle_core::Device::Cpu, &mut |_, _| {});
        }
    }
}
