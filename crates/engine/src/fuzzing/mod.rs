//! What the engine reads from strangers, read from any bytes: one function for each fuzz target, which `fuzz/` calls
//! with inputs that reach new code. A panic, an endless loop or a claim of memory is a finding. Every input that is kept
//! in `fuzz/corpus/` is replayed by a test here.
//!
//! A new target is a file here, a line in `TARGETS`, and a program and a corpus in `fuzz/`.

mod answer;
mod blocks;
mod constraint;
mod file;
mod folder;
mod gguf;
mod kv;
mod template;
mod tokenizer;

pub use answer::answer;
pub use blocks::blocks;
pub use constraint::constraint;
pub use folder::folder;
pub use gguf::gguf;
pub use kv::kv;
pub use template::template;
pub use tokenizer::tokenizer;

/// What the sections of an input are parted by: a line of its own, so that people can read and write most inputs.
const SECTION: &[u8] = b"\n%%\n";

fn sections(mut data: &[u8]) -> Vec<&[u8]> {
    let mut sections = Vec::new();
    while let Some(at) = data.windows(SECTION.len()).position(|window| window == SECTION) {
        sections.push(&data[..at]);
        data = &data[at + SECTION.len()..];
    }
    sections.push(data);
    sections
}

fn texts(data: &[u8]) -> Vec<String> {
    sections(data).into_iter().map(|section| String::from_utf8_lossy(section).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    type Target = fn(&[u8]);
    const TARGETS: [(&str, Target); 8] = [
        ("answer", answer),
        ("blocks", blocks),
        ("constraint", constraint),
        ("folder", folder),
        ("gguf", gguf),
        ("kv", kv),
        ("template", template),
        ("tokenizer", tokenizer),
    ];

    #[test]
    fn every_kept_input_is_read() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        for (name, target) in TARGETS {
            let mut count = 0;
            for entry in corpus.join(name).read_dir().unwrap() {
                let path = entry.unwrap().path();
                // Shown where it is the last line before a panic.
                println!("{}", path.display());
                target(&std::fs::read(path).unwrap());
                count += 1;
            }
            assert!(count > 0, "no inputs for {name}");
        }
    }
}
