//! Models in several files.

use std::path::{Path, PathBuf};

use candle_core::Device;
use proptest::prelude::*;
use testkit::gguf::{GgufBuilder, tiny_model};

use super::parse::Header;
use super::*;
use crate::device::KvType;
use crate::models::Part;
use crate::read_header;

#[track_caller]
fn check_refused(path: &Path, sentence: &str) {
    let error = read_header(path).unwrap_err().to_string();
    assert!(error.contains(sentence), "`{error}` doesn't say `{sentence}`");
}

/// Says in `file` which part it is, and of how many tensors.
fn part(file: GgufBuilder, no: u16, count: u16, tensors: usize) -> GgufBuilder {
    file.u16("split.no", no).u16("split.count", count).i32("split.tensors.count", tensors as i32)
}

fn logits(path: &Path) -> Vec<f32> {
    let model = crate::models::load(&Gguf::open(path).unwrap(), &Device::Cpu, &mut |_, _| {}).unwrap().model;
    let part = Part { tokens: &[3, 1, 4, 1, 5], cache: &mut model.new_cache(KvType::DEFAULT), logits: 1 };
    model.forward(&mut [part]).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_model_in_parts_is_the_same_model_whichever_part_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let whole = tiny_model(1).write(folder.path(), "whole.gguf").unwrap();
    let parts = tiny_model(1).write_split(folder.path(), "tiny", 3).unwrap();
    for path in &parts {
        let (header, whole) = (read_header(path).unwrap(), read_header(&whole).unwrap());
        header.check_supported().unwrap();
        assert_eq!((&header.path, &header.files), (&parts[0], &parts));
        assert_eq!((header.weight_bytes, header.parameters), (whole.weight_bytes, whole.parameters));
        assert_eq!(header.footprint(512, KvType::DEFAULT), whole.footprint(512, KvType::DEFAULT));
        let bytes: u64 = parts.iter().map(|path| path.metadata().unwrap().len()).sum();
        assert_eq!(header.file_bytes.0, bytes);
    }
    assert_eq!(logits(&parts[1]), logits(&whole));
}

#[test]
fn a_first_part_may_have_no_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let first = part(GgufBuilder::new().text("general.architecture", "llama"), 0, 2, 1);
    let path = first.write(folder.path(), "a-00001-of-00002.gguf").unwrap();
    let second = part(GgufBuilder::new().tensor("w", &[2], &[1.0, 2.0]), 1, 2, 1);
    second.write(folder.path(), "a-00002-of-00002.gguf").unwrap();
    let header = read_header(&path).unwrap();
    assert_eq!((header.architecture.as_str(), header.parameters), ("llama", 2));
}

#[test]
fn a_missing_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let parts = tiny_model(1).write_split(folder.path(), "tiny", 3).unwrap();
    std::fs::remove_file(&parts[1]).unwrap();
    let sentence = "part 2 of 3 is missing: `tiny-00002-of-00003.gguf` is not beside the others";
    check_refused(&parts[0], sentence);
    check_refused(&parts[2], sentence);
}

#[test]
fn a_damaged_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let parts = tiny_model(1).write_split(folder.path(), "tiny", 3).unwrap();
    let file = std::fs::read(&parts[2]).unwrap();
    std::fs::write(&parts[2], &file[..file.len() / 2]).unwrap();
    check_refused(&parts[0], "`tiny-00003-of-00003.gguf`: the file ends at byte");
}

#[test]
fn parts_of_other_models_are_refused() {
    let check = |second: GgufBuilder, sentence: &str| {
        let folder = tempfile::tempdir().unwrap();
        let parts = tiny_model(1).write_split(folder.path(), "tiny", 2).unwrap();
        second.write(folder.path(), "tiny-00002-of-00002.gguf").unwrap();
        check_refused(&parts[0], sentence);
        check_refused(&parts[0], "doesn't fit the other parts of the model: ");
    };
    let tensors = Header::parse(&tiny_model(1).build()).unwrap().tensors.len();
    check(tiny_model(2), "it says that it is a whole model");
    check(
        tiny_model(1).split(2).remove(0),
        "`tiny-00002-of-00002.gguf` doesn't fit the other parts of the model: it says that it is part 1 of 2",
    );
    check(tiny_model(1).split(3).remove(1), "it says that it is part 2 of 3");
    check(part(GgufBuilder::new(), 1, 2, 7), "its model has another number of tensors");
    check(part(GgufBuilder::new(), 1, 2, tensors), "the parts have 11 tensors together, and it says 21");
    check(
        part(GgufBuilder::new().text("general.name", "Other"), 1, 2, tensors),
        "its `general.name` differs from that of the first part",
    );
    check(
        part(GgufBuilder::new().tensor("blk.0.attn_norm.weight", &[1], &[1.0]), 1, 2, tensors),
        "it has a tensor `blk.0.attn_norm.weight` that another part has",
    );
}

#[test]
fn a_part_under_another_name_says_which_name_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let sentence = "it is part 2 of 3, so its name must end in `-00002-of-00003.gguf`";
    for name in ["renamed.gguf", "tiny-00001-of-00003.gguf", "tiny-00002-of-00004.gguf", "tiny-2-of-3.gguf"] {
        check_refused(&tiny_model(1).split(3)[1].write(folder.path(), name).unwrap(), sentence);
    }
    let nonsense = GgufBuilder::new().u64("split.no", u64::MAX).u64("split.count", u64::MAX);
    check_refused(&nonsense.write(folder.path(), "a-00001-of-00002.gguf").unwrap(), "so its name must end in");
}

#[test]
fn names_of_parts_are_told_from_others() {
    let name = PartName::parse(Path::new("/m/a-of-b-00002-of-00003.GGUF")).unwrap();
    assert_eq!((name.model.as_str(), name.first()), ("a-of-b", PathBuf::from("/m/a-of-b-00001-of-00003.GGUF")));
    assert_eq!(name.all().count(), 3);
    for other in
        ["a.gguf", "a-00002-of-00001.gguf", "a-00000-of-00001.gguf", "a-1-of-2.gguf", "a-0000é-of-00002.gguf", ""]
    {
        assert_eq!(PartName::parse(Path::new(other)), None, "{other}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn mutated_parts_load_or_are_refused(
        index in 0_usize..3,
        changes in prop::collection::vec((0_usize..12_000, any::<u8>()), 1..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let parts = tiny_model(1).write_split(folder.path(), "tiny", 3).unwrap();
        let mut file = std::fs::read(&parts[index]).unwrap();
        // The later parts have short headers, at whose beginning are the keys of the split.
        let header_len = if index == 0 { 12_000 } else { 700 };
        for (at, byte) in changes {
            file[at % header_len] = byte;
        }
        std::fs::write(&parts[index], &file).unwrap();
        for path in &parts {
            if let Ok(gguf) = Gguf::open(path) {
                for tensor in gguf.header.tensors.values() {
                    prop_assert!(tensor.start + tensor.bytes <= gguf.parts[tensor.part].map.len());
                }
                let header = crate::header::ModelHeader::from_gguf(&gguf);
                let _ = header.map(|header| header.footprint(usize::MAX >> 1, KvType::DEFAULT).total());
                let _ = crate::models::load(&gguf, &Device::Cpu, &mut |_, _| {});
            }
        }
    }
}
