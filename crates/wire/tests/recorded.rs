//! Replies of real servers, byte for byte as `curl -i --raw` took them from the wire.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use std::collections::VecDeque;

use chat::{FinishReason, Usage};
use wire::openai::{Piece, decode_chunk, decode_error, decode_models, decode_response};
use wire::sse::{DONE, SseDecoder};

macro_rules! body {
    ($name:literal) => {
        body_of(include_bytes!(concat!("recorded/", $name, ".http")))
    };
}

/// The body without its head and without the framing of a chunked one.
fn body_of(reply: &[u8]) -> Vec<u8> {
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(reply[..end].to_vec()).unwrap().to_ascii_lowercase();
    let mut rest = &reply[end + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return rest.to_vec();
    }
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 4 + size..];
    }
}

/// Text, end and usage of a stream that is given to the decoder in parts of `size` bytes.
fn read_stream(body: &[u8], size: usize) -> (String, Option<FinishReason>, Option<Usage>) {
    let mut events = VecDeque::new();
    let mut decoder = SseDecoder::default();
    for part in body.chunks(size) {
        decoder.push(part, &mut events).unwrap();
    }
    assert_eq!(events.pop_back().map(|event| event.data).as_deref(), Some(DONE));
    let pieces: Vec<Piece> = events.iter().map(|event| decode_chunk(&event.data).unwrap()).collect();
    let text = pieces.iter().filter_map(|piece| piece.text.as_deref()).collect();
    (text, pieces.iter().find_map(|piece| piece.finish), pieces.iter().find_map(|piece| piece.usage))
}

#[test]
fn mlx_lm_streams_an_answer() {
    let body = body!("mlx_lm-0.32.2/stream");
    for size in [1, 7, body.len()] {
        let (text, finish, usage) = read_stream(&body, size);
        assert_eq!(text, "\u{fffd} prry*\u{fffd}ry*");
        assert_eq!(finish, Some(FinishReason::Stop));
        assert_eq!(usage, Some(Usage { prompt_tokens: 44, cached_tokens: 0, completion_tokens: 9 }));
    }
}

#[test]
fn mlx_lm_answers_in_one_piece_as_it_streams() {
    let piece = decode_response(&body!("mlx_lm-0.32.2/response")).unwrap();
    assert_eq!(piece.text.as_deref(), Some("\u{fffd} prry*\u{fffd}ry*"));
    assert_eq!(piece.finish, Some(FinishReason::Stop));
    assert_eq!(piece.usage, Some(Usage { prompt_tokens: 44, cached_tokens: 43, completion_tokens: 9 }));
}

#[test]
fn mlx_lm_lists_models_and_says_errors() {
    let models = decode_models(&body!("mlx_lm-0.32.2/models")).unwrap();
    assert_eq!(models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["/tmp/tiny-llama"]);
    // Where its cache folder is missing, the server breaks off after the head: status 200 and nothing else.
    assert!(decode_models(&body!("mlx_lm-0.32.2/models-crashed")).is_err());
    let error = decode_error(&body!("mlx_lm-0.32.2/error")).unwrap();
    assert_eq!(error.message, "'str' object has no attribute 'get'");
    assert!(decode_error(&body!("mlx_lm-0.32.2/missing-model")).unwrap().message.starts_with("Cannot find"));
    assert_eq!(decode_error(&body!("mlx_lm-0.32.2/not-found")).unwrap().message, "Not Found");
}

#[test]
fn llama_cpp_python_streams_an_answer() {
    let body = body!("llama-cpp-python-0.3.36/stream");
    for size in [1, 7, body.len()] {
        let (text, finish, usage) = read_stream(&body, size);
        assert_eq!(text, "🌊 The sea is a vast, unforgiving landscape that stretches across the globe. 🌞");
        assert_eq!(finish, Some(FinishReason::Stop));
        assert_eq!(usage, None, "it is asked for and not sent");
    }
}

#[test]
fn llama_cpp_python_answers_in_one_piece() {
    let piece = decode_response(&body!("llama-cpp-python-0.3.36/response")).unwrap();
    assert_eq!(piece.text.as_deref(), Some("🌊 The sea is a vast, shimmering canvas of blue and white."));
    assert_eq!(piece.usage, Some(Usage { prompt_tokens: 40, cached_tokens: 0, completion_tokens: 15 }));
}

#[test]
fn llama_cpp_python_lists_models_and_says_errors() {
    let models = decode_models(&body!("llama-cpp-python-0.3.36/models")).unwrap();
    assert_eq!((models[0].id.as_str(), models[0].owned_by.as_deref()), ("starter", Some("me")));
    let error = decode_error(&body!("llama-cpp-python-0.3.36/error")).unwrap();
    assert!(error.message.starts_with("1 validation error: {'type': 'list_type'"), "{}", error.message);
    assert_eq!(error.kind.as_deref(), Some("internal_server_error"));
}
