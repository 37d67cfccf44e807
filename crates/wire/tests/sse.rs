//! The framing of a stream, however the network cuts it.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use std::collections::VecDeque;

use proptest::prelude::*;
use wire::sse::{EVENT_LIMIT, SseDecoder, SseError, SseEvent, encode_comment, encode_data, encode_event};

fn decode<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<SseEvent> {
    let mut decoder = SseDecoder::default();
    let mut events = VecDeque::new();
    for part in parts {
        decoder.push(part, &mut events).unwrap();
    }
    events.extend(decoder.finish());
    events.into()
}

fn event(data: &str) -> SseEvent {
    SseEvent { name: None, data: data.into() }
}

/// Whole, cut in two at every byte, and byte by byte: always the same events.
fn check(stream: &[u8], expected: &[SseEvent]) {
    assert_eq!(decode([stream]), expected, "{}", stream.escape_ascii());
    for cut in 0..=stream.len() {
        let (before, after) = stream.split_at(cut);
        assert_eq!(decode([before, after]), expected, "{} cut at {cut}", stream.escape_ascii());
    }
    assert_eq!(decode(stream.chunks(1)), expected, "{} byte by byte", stream.escape_ascii());
}

#[test]
fn events_come_out_wherever_the_bytes_are_cut() {
    check("data: größe 🌊\n\ndata: [DONE]\n\n".as_bytes(), &[event("größe 🌊"), event("[DONE]")]);
}

#[test]
fn lines_end_with_lf_cr_or_both() {
    for end in ["\n", "\r\n", "\r"] {
        let stream = format!("data: a{end}data: b{end}{end}: comment{end}data:c{end}{end}");
        check(stream.as_bytes(), &[event("a\nb"), event("c")]);
    }
}

#[test]
fn what_is_not_data_is_passed_over() {
    check(b": keep-alive\n\nid: 7\nretry: 10\nunknown: x\ndata\n\n\n\ndata: x\n\n", &[event(""), event("x")]);
    check(b"event: ping\n\ndata: x\n\n", &[event("x")]);
}

#[test]
fn names_belong_to_their_event_only() {
    let named = SseEvent { name: Some("delta".into()), data: "1".into() };
    check(b"event: delta\ndata: 1\n\ndata: 2\n\n", &[named, event("2")]);
    let failed = SseEvent { name: Some("error".into()), data: "{\"code\":500}".into() };
    check(b"error: {\"code\":500}\n\n", &[failed]);
}

#[test]
fn only_a_mark_at_the_very_start_is_taken_off() {
    check("\u{feff}data: \u{feff}x\n\n".as_bytes(), &[event("\u{feff}x")]);
    check("data: a\n\n\u{feff}data: b\n\n".as_bytes(), &[event("a")]);
}

#[test]
fn one_space_after_the_colon_is_no_data() {
    check(b"data:  two\n\ndata:none\n\n", &[event(" two"), event("none")]);
}

#[test]
fn an_event_that_ends_with_the_connection_is_given() {
    check(b"data: a\n\ndata: [DONE]", &[event("a"), event("[DONE]")]);
    check(b"data: a\n\ndata: [DONE]\n", &[event("a"), event("[DONE]")]);
    check(b"data: a\n\ndata: b\ndata: c", &[event("a"), event("b\nc")]);
    check(b"data: a\n\n: comment", &[event("a")]);
}

#[test]
fn an_event_beyond_the_limit_is_refused_and_what_came_before_is_kept() {
    for stream in ["data: 1234567890123", "data: 12345\ndata: 67890\ndata: x\n", "event: 123456789012345\n"] {
        let mut decoder = SseDecoder::with_limit(16);
        let mut events = VecDeque::new();
        let bytes = format!("data: ok\n\n{stream}");
        assert_eq!(decoder.push(bytes.as_bytes(), &mut events), Err(SseError::TooLong { limit: 16 }), "{stream}");
        assert_eq!(events, [event("ok")]);
    }
}

#[test]
fn endless_bytes_take_no_more_memory_than_the_limit() {
    let mut decoder = SseDecoder::default();
    let mut events = VecDeque::new();
    let block = [b'x'; 4096];
    let pushed = (0..=EVENT_LIMIT / block.len()).find(|_| decoder.push(&block, &mut events).is_err());
    assert_eq!(pushed, Some(EVENT_LIMIT / block.len()));
    // Comments and events that were given don't count.
    let mut decoder = SseDecoder::with_limit(64);
    for _ in 0..100 {
        decoder.push(b": keep-alive\n\ndata: x\n\n", &mut events).unwrap();
    }
    assert_eq!(events.len(), 100);
}

#[test]
fn what_is_not_utf8_is_replaced() {
    check(b"data: a\xffb\n\n", &[event("a\u{fffd}b")]);
}

proptest! {
    #[test]
    fn any_bytes_are_taken(stream in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
        let cut = cut.min(stream.len());
        let (before, after) = stream.split_at(cut);
        prop_assert_eq!(decode([stream.as_slice()]), decode([before, after]));
    }

    #[test]
    fn lines_of_a_stream_are_taken_however_they_are_mixed(
        lines in proptest::collection::vec("(data|event|id|error|:|)[: a\u{feff}é]{0,4}(\n|\r|\r\n){0,3}", 0..12),
    ) {
        let stream = lines.concat();
        prop_assert_eq!(decode([stream.as_bytes()]), decode(stream.as_bytes().chunks(1)));
    }

    #[test]
    fn any_text_comes_back(text in "(?s).{0,60}") {
        let normal = text.replace("\r\n", "\n").replace('\r', "\n");
        prop_assert_eq!(decode([encode_data(&text).as_bytes()]), vec![event(&normal)]);
        let named = SseEvent { name: Some("ping".into()), data: normal };
        prop_assert_eq!(decode([encode_event("ping", &text).as_bytes()]), vec![named]);
        prop_assert_eq!(decode([encode_comment(&text).as_bytes()]), vec![]);
    }
}
