use std::hint::black_box;

use super::{file, sections, tokenizer};
use crate::device::KvType;
use crate::gguf::Gguf;
use crate::header::ModelHeader;
use crate::sampling::SamplingDefaults;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// A section for each file of a model: their headers, joined, and all that is said of the model before it is loaded.
pub fn gguf(data: &[u8]) {
    let files = sections(data);
    if let Ok(gguf) = file::open(&files) {
        describe(&gguf);
    }
}

/// Everything that is read of a model but its weights.
pub(super) fn describe(gguf: &Gguf) {
    for tensor in gguf.header.tensors.values() {
        let end = tensor.start.checked_add(tensor.bytes);
        assert!(end.is_some_and(|end| end <= gguf.parts[tensor.part].map.len()), "{tensor:?} is not in its file");
    }
    assert!(gguf.parts.iter().all(|part| part.header_len <= part.map.len()));
    black_box(SamplingDefaults::read(gguf.metadata()));
    if let Ok(header) = ModelHeader::from_gguf(gguf) {
        for context_len in [0, 1, header.context_len, usize::MAX] {
            black_box(header.footprint(context_len, KvType::Q8).total());
        }
        black_box((
            header.bytes_per_token(usize::MAX, KvType::Q8),
            header.flops_per_token(),
            header.kv_bytes_per_token(KvType::F32),
            header.state_bytes(KvType::F16),
        ));
        // The refusal's words.
        black_box(header.check_supported().map_err(|error| error.to_string())).ok();
    }
    let Ok(tokenizer) = Tokenizer::load(gguf) else { return };
    let words = gguf.metadata().array("tokenizer.ggml.tokens").map_or(0, |words| words.len());
    tokenizer::check(&tokenizer, "Grüße, <|im_end|> 東京\n\n  12345's</s>", words);
    let (bos, eos) = (tokenizer.special_text(tokenizer.bos), tokenizer.special_text(tokenizer.eos));
    // Its rendering is a target of its own.
    black_box(ChatTemplate::new(gguf.metadata().text("tokenizer.chat_template"), bos, eos, tokenizer.marks()).is_ok());
}
