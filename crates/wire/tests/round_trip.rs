//! What the gateway writes, the node client reads; and no bytes whatsoever bring the readers down.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use std::collections::VecDeque;
use std::time::Duration;

use chat::{
    ChatEvent, ChatRequest, Finish, FinishReason, Message, Progress, ReasoningEffort, Redacted, Role, SamplingParams,
    ScoredToken, Timings, TokenLogprob, Tool, ToolCall, Usage,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::Value;
use wire::openai::responses::{self, EventEncoder, Response, ResponseHead};
use wire::openai::{
    ChatCall, Choices, ChunkEncoder, ErrorBody, Piece, ReplyHead, ToolCallPart, WholeAnswer, decode_chunk,
    decode_error, decode_models, decode_request, decode_response, encode_request, encode_response,
};
use wire::sse::{DONE, SseDecoder};
use wire::{anthropic, ollama};

fn head() -> ReplyHead {
    ReplyHead { id: "chatcmpl-1".into(), created: 1_700_000_000, model: "qwen".into() }
}

fn finish() -> Finish {
    Finish {
        reason: FinishReason::Length,
        usage: Some(Usage { prompt_tokens: 12, cached_tokens: 3, completion_tokens: 4 }),
        timings: Timings {
            ttft: Some(Duration::from_millis(250)),
            prefill_tokens_per_sec: Some(800.5),
            decode_tokens_per_sec: Some(42.25),
            guessed_tokens: 3,
        },
    }
}

fn data_of(stream: &str) -> Vec<String> {
    let mut events = VecDeque::new();
    SseDecoder::default().push(stream.as_bytes(), &mut events).unwrap();
    events.into_iter().map(|event| event.data).collect()
}

#[test]
fn a_stream_comes_back() {
    let mut encoder = ChunkEncoder::new(head(), true);
    let events = [
        ChatEvent::Progress(Progress::Prefill { done: 4, total: 12 }),
        ChatEvent::Thinking("hm\n".into()),
        ChatEvent::Text("größe \"🌊\"\r\n\r\ndata: x".into()),
        ChatEvent::Finished(finish()),
    ];
    let stream: String = events.iter().map(|event| encoder.encode(event)).collect();
    assert!(stream.starts_with(": prefill 4/12\n\n"), "{stream}");
    let data = data_of(&stream);
    let (last, chunks) = data.split_last().unwrap();
    assert_eq!(last, DONE);
    let pieces: Vec<Piece> = chunks.iter().map(|data| decode_chunk(data).unwrap()).collect();
    let expected = [
        Piece { thinking: Some("hm\n".into()), ..Piece::default() },
        Piece { text: Some("größe \"🌊\"\r\n\r\ndata: x".into()), ..Piece::default() },
        Piece { finish: Some(FinishReason::Length), timings: Some(finish().timings), ..Piece::default() },
        Piece { usage: finish().usage, ..Piece::default() },
    ];
    assert_eq!(pieces, expected);
    assert!(chunks[0].contains(r#""delta":{"role":"assistant","reasoning_content":"#), "{}", chunks[0]);
    assert!(!chunks[1].contains("assistant"), "the role is named once");
}

#[test]
fn usage_is_sent_only_where_it_is_wanted_and_known() {
    for (wanted, usage, chunks) in [(false, finish().usage, 3), (true, None, 3), (true, finish().usage, 4)] {
        let mut encoder = ChunkEncoder::new(head(), wanted);
        let stream = encoder.encode(&ChatEvent::Finished(Finish { usage, ..finish() }));
        assert_eq!(data_of(&stream).len(), chunks, "{stream}");
    }
}

#[test]
fn an_error_in_the_middle_is_told_and_no_end_mark_follows() {
    let mut encoder = ChunkEncoder::new(head(), true);
    let mut stream = encoder.encode(&ChatEvent::Text("a".into()));
    stream += &encoder.encode_error(&ErrorBody { message: "the engine stopped".into(), ..ErrorBody::default() });
    let data = data_of(&stream);
    assert_eq!(data.len(), 2);
    assert_eq!(decode_chunk(&data[1]).unwrap().error.unwrap().message, "the engine stopped");
}

#[test]
fn a_whole_response_comes_back() {
    let drawn = ScoredToken { bytes: b"text".to_vec(), logprob: -0.5 };
    let logprobs = vec![TokenLogprob { drawn, top: Vec::new() }];
    let answer = WholeAnswer {
        text: "text".into(),
        thinking: "thoughts".into(),
        logprobs: logprobs.clone(),
        ..WholeAnswer::default()
    };
    let piece = decode_response(&encode_response(&head(), Choices::CHAT, &[(answer, finish())])).unwrap();
    let expected = Piece {
        text: Some("text".into()),
        thinking: Some("thoughts".into()),
        tool_calls: Vec::new(),
        tokens: Vec::new(),
        token_offset: None,
        logprobs,
        finish: Some(FinishReason::Length),
        usage: finish().usage,
        timings: Some(finish().timings),
        error: None,
    };
    assert_eq!(piece, expected);
}

#[test]
fn calls_come_back_streamed_and_whole() {
    let call = ToolCall { id: "c1".into(), name: "search".into(), arguments: Redacted(r#"{"q": "🌊"}"#.into()) };
    let part = ToolCallPart {
        index: 0,
        id: Some("c1".into()),
        name: Some("search".into()),
        arguments: call.arguments.clone(),
    };
    let stop = Finish { reason: FinishReason::Stop, ..finish() };
    let mut encoder = ChunkEncoder::new(head(), false);
    let mut stream = encoder.encode(&ChatEvent::ToolCall { index: 0, call: call.clone() });
    stream += &encoder.encode(&ChatEvent::Finished(stop));
    let data = data_of(&stream);
    assert_eq!(decode_chunk(&data[0]).unwrap().tool_calls, std::slice::from_ref(&part));
    assert!(data[1].contains(r#""finish_reason":"tool_calls""#), "{}", data[1]);
    let whole = decode_response(&encode_response(
        &head(),
        Choices::CHAT,
        &[(WholeAnswer { calls: vec![call], ..WholeAnswer::default() }, stop)],
    ))
    .unwrap();
    assert_eq!((whole.tool_calls, whole.finish), (vec![part], Some(FinishReason::Stop)));
}

#[test]
fn parameters_are_sent_with_the_digits_that_were_written() {
    let sampling =
        SamplingParams { temperature: Some(0.7), repetition_penalty: Some(1.1), ..SamplingParams::default() };
    let messages = vec![Message::new(Role::User, "hi")];
    let call = ChatCall {
        n: 1,
        request: ChatRequest { model: Some("m".into()), messages, sampling, ..ChatRequest::default() },
        stream: true,
        include_usage: true,
    };
    let expected = concat!(
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"#,
        r#""stream_options":{"include_usage":true},"temperature":0.7,"repetition_penalty":1.1,"repeat_penalty":1.1}"#
    );
    assert_eq!(String::from_utf8(encode_request(&call)).unwrap(), expected);
}

fn calls() -> impl Strategy<Value = ChatCall> {
    let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant), Just(Role::Tool)];
    let call = ("[a-z0-9]{1,8}", "[a-z_]{1,8}", "(?s).{0,20}").prop_map(|(id, name, arguments)| ToolCall {
        id,
        name,
        arguments: Redacted(arguments),
    });
    let extras = (option::of("(?s).{0,9}"), vec(call, 0..3), option::of("[a-z0-9]{1,8}"), option::of("[a-z]{1,8}"));
    let message = (role, "(?s).{0,20}", extras).prop_map(|(role, text, (reasoning, tool_calls, id, name))| Message {
        reasoning: reasoning.map(Redacted),
        tool_calls,
        tool_call_id: id,
        name,
        ..Message::new(role, text)
    });
    let messages = vec(message, 1..4);
    let schema = prop_oneof![Just(String::new()), Just(r#"{"type":"object","properties":{"q":{}}}"#.to_owned())];
    let tool = ("[a-z_]{1,8}", ".{0,9}", schema).prop_map(|(name, description, parameters)| Tool {
        name,
        description,
        parameters,
    });
    let effort = prop_oneof![
        Just(ReasoningEffort::Off),
        Just(ReasoningEffort::Low),
        Just(ReasoningEffort::Medium),
        Just(ReasoningEffort::High)
    ];
    let tools = (vec(tool, 0..3), option::of(effort));
    let penalties = (option::of(0.5f32..2.0), option::of(-2f32..2.0), option::of(-2f32..2.0));
    let draws = (option::of(0f32..2.0), option::of(0usize..100), option::of(0f32..=1.0), option::of(0f32..=1.0));
    let limits = (option::of(any::<u64>()), option::of(1usize..1 << 40), vec(".{1,6}", 0..3));
    let sampling = (draws, penalties, limits).prop_map(|(draws, penalties, limits)| SamplingParams {
        temperature: draws.0,
        top_k: draws.1,
        top_p: draws.2,
        min_p: draws.3,
        repetition_penalty: penalties.0,
        presence_penalty: penalties.1,
        frequency_penalty: penalties.2,
        seed: limits.0,
        max_tokens: limits.1,
        stop: limits.2,
        ..SamplingParams::default()
    });
    (option::of("[a-z/.-]{1,12}"), messages, tools, sampling, any::<(bool, bool)>()).prop_map(
        |(model, messages, (tools, reasoning_effort), sampling, (stream, usage))| {
            ChatCall {
                n: 1,
                request: ChatRequest { model, messages, tools, reasoning_effort, sampling, ..ChatRequest::default() },
                stream,
                // Only a stream can be asked for it.
                include_usage: stream && usage,
            }
        },
    )
}

proptest! {
    #[test]
    fn any_call_comes_back(call in calls()) {
        prop_assert_eq!(decode_request(&encode_request(&call)).unwrap(), call);
    }

    #[test]
    fn any_stream_of_messages_is_read_as_the_whole_response(events in vec(pieces(), 0..12)) {
        let head = anthropic::MessageHead { id: "msg_1".into(), model: "m".into() };
        let mut encoder = anthropic::EventEncoder::new(head);
        let mut stream: String = events.iter().map(|event| encoder.encode(event)).collect();
        stream += &encoder.encode(&ChatEvent::Finished(finish()));
        let read = accumulated(&stream);
        let joined = |of: fn(&ChatEvent) -> &str| events.iter().map(of).collect::<String>();
        let text = joined(|event| if let ChatEvent::Text(text) = event { text } else { "" });
        let thinking = joined(|event| if let ChatEvent::Thinking(text) = event { text } else { "" });
        let calls = events.iter().filter(|event| matches!(event, ChatEvent::ToolCall { .. })).count();
        let blocks = read["content"].as_array().unwrap();
        let all = |name: &str| blocks.iter().filter_map(|block| block[name].as_str()).collect::<String>();
        prop_assert_eq!((all("text"), all("thinking")), (text, thinking));
        prop_assert_eq!(blocks.iter().filter(|block| block["type"] == "tool_use").count(), calls);
        prop_assert_eq!(&read["stop_reason"], "max_tokens");
        prop_assert_eq!(&read["usage"]["input_tokens"], 9);
    }

    #[test]
    fn any_stream_of_a_response_is_read_as_the_whole_response(events in vec(pieces(), 0..12)) {
        let repeated = responses::decode_request(br#"{"input":"hi","instructions":"be brief"}"#).unwrap().repeated;
        let head = ResponseHead { id: "resp_1".into(), created_at: 7, model: "m".into(), repeated };
        let (mut encoder, mut response) = (EventEncoder::new(head.clone()), Response::new(head));
        let mut stream: String = events.iter().map(|event| encoder.encode(event)).collect();
        stream += &encoder.encode(&ChatEvent::Finished(finish()));
        events.iter().for_each(|event| response.push(event));
        let whole: Value = serde_json::from_slice(&response.encode(&finish())).unwrap();
        let (items, ended) = items_of(&stream);
        prop_assert_eq!(&ended, &whole);
        prop_assert_eq!(whole["output"].as_array().unwrap(), &items);
    }

    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn any_json_is_a_value_or_an_error(body in mangled()) {
        read_as_everything(body.as_bytes());
    }
}

fn pieces() -> impl Strategy<Value = ChatEvent> {
    let call = "(\\{\"q\": [0-9]\\}|.{0,9})".prop_map(|arguments| ToolCall {
        id: "c1".into(),
        name: "search".into(),
        arguments: Redacted(arguments),
    });
    prop_oneof![
        Just(ChatEvent::Progress(Progress::Waiting { ahead: 1 })),
        "(?s).{0,9}".prop_map(ChatEvent::Text),
        "(?s).{0,9}".prop_map(ChatEvent::Thinking),
        call.prop_map(|call| ChatEvent::ToolCall { index: 0, call }),
    ]
}

/// The message that Anthropic's SDKs make of a stream; panics where its events don't follow each other as they must.
fn accumulated(stream: &str) -> Value {
    let mut events = VecDeque::new();
    SseDecoder::default().push(stream.as_bytes(), &mut events).unwrap();
    let (mut message, mut open, mut has_ended) = (Value::Null, None, false);
    for event in events {
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert!(!has_ended && data["type"] == *event.name.unwrap());
        let index = data["index"].as_u64();
        match data["type"].as_str().unwrap() {
            "message_start" => {
                assert!(message.is_null());
                message = data["message"].clone();
            }
            "ping" => assert!(!message.is_null()),
            "content_block_start" => {
                let content = message["content"].as_array_mut().unwrap();
                assert!(open.is_none() && index == Some(content.len() as u64));
                content.push(data["content_block"].clone());
                open = index.map(|_| String::new());
            }
            "content_block_delta" => {
                let delta = &data["delta"];
                let block = message["content"].as_array_mut().unwrap().last_mut().unwrap();
                let text = |name: &str| delta[name].as_str().unwrap_or_default().to_owned();
                let read = open.as_mut().unwrap();
                *read += &(text("text") + &text("thinking") + &text("partial_json"));
                let member = match delta["type"].as_str().unwrap() {
                    "text_delta" => "text",
                    "thinking_delta" => "thinking",
                    "input_json_delta" => {
                        block["input"] = serde_json::from_str(read).unwrap();
                        assert!(block["input"].is_object());
                        continue;
                    }
                    other => {
                        assert_eq!((other, &block["type"]), ("signature_delta", &Value::from("thinking")));
                        continue;
                    }
                };
                assert_eq!(block["type"], member);
                block[member] = Value::from(read.as_str());
            }
            "content_block_stop" => assert!(open.take().is_some()),
            "message_delta" => {
                assert!(open.is_none());
                message["stop_reason"] = data["delta"]["stop_reason"].clone();
                message["usage"] = data["usage"].clone();
            }
            other => {
                assert_eq!(other, "message_stop");
                has_ended = true;
            }
        }
    }
    assert!(has_ended);
    message
}

/// The items that a program makes of a stream's deltas, and the response at its end; panics where events don't follow each
/// other as they must.
fn items_of(stream: &str) -> (Vec<Value>, Value) {
    let mut events = VecDeque::new();
    SseDecoder::default().push(stream.as_bytes(), &mut events).unwrap();
    let (mut items, mut read, mut ended) = (Vec::<Value>::new(), String::new(), None);
    for (number, event) in events.into_iter().enumerate() {
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert!(ended.is_none() && data["type"] == *event.name.unwrap() && data["sequence_number"] == number);
        let name = data["type"].as_str().unwrap().strip_prefix("response.").unwrap();
        if let Some(index) = data["output_index"].as_u64() {
            let is_added = name == "output_item.added";
            assert_eq!(index as usize + usize::from(!is_added), items.len());
        }
        let part = |item: &Value| item.pointer("/content/0").cloned().unwrap_or(Value::Null);
        match name {
            "created" | "in_progress" => assert_eq!(data["response"]["status"], "in_progress"),
            "output_item.added" => {
                assert!(read.is_empty());
                items.push(data["item"].clone());
            }
            "content_part.added" => assert!(part(items.last().unwrap()).is_null()),
            "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta" => {
                assert_eq!(data["item_id"], items.last().unwrap()["id"]);
                read += data["delta"].as_str().unwrap();
            }
            "output_text.done" | "reasoning_text.done" => assert_eq!(data["text"], *read),
            "function_call_arguments.done" => assert_eq!(data["arguments"], *std::mem::take(&mut read)),
            "content_part.done" => assert_eq!(data["part"]["text"], *std::mem::take(&mut read)),
            "output_item.done" => {
                let item = items.last_mut().unwrap();
                assert_eq!((&data["item"]["id"], &data["item"]["type"]), (&item["id"], &item["type"]));
                *item = data["item"].clone();
            }
            other => {
                assert_eq!(other, "incomplete");
                ended = Some(data["response"].clone());
            }
        }
    }
    (items, ended.unwrap())
}

fn read_as_everything(bytes: &[u8]) {
    let _ = decode_request(bytes);
    let _ = anthropic::decode_request(bytes);
    let _ = anthropic::decode_count(bytes);
    let _ = responses::decode_request(bytes);
    let _ = ollama::decode_chat(bytes);
    let _ = ollama::decode_generate(bytes);
    let _ = ollama::decode_show(bytes);
    let _ = decode_response(bytes);
    let _ = decode_models(bytes);
    if let Some(error) = decode_error(bytes) {
        assert!(!error.message.is_empty() && error.message.chars().count() <= 401 && !error.message.contains('\n'));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = decode_chunk(text);
    }
}

/// JSON of the dialects with any part of it replaced by something that doesn't belong there.
fn mangled() -> impl Strategy<Value = String> {
    let names = "(images|tool_name|tool_call_id|options|num_predict|think|stream|keep_alive|prompt|suffix|model|instructions|include|top_logprobs|format|schema|reasoning|effort|summary|output|call_id|system|thinking|output_config|max_tokens|stop_sequences|input|input_schema|tool_use_id|is_error|tool_choice|tools|tool_calls|function|name|arguments|parameters|messages|role|content|type|text|choices|delta|message|finish_reason|usage|prompt_tokens|timings|error|detail|data|id|index|stop|seed|n)";
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("-1e308".to_owned()),
        Just("18446744073709551615".to_owned()),
        Just("0.5".to_owned()),
        "\"(user|assistant|tool|json|0s|message|input_text|reasoning|function_call|function_call_output|json_schema|text|thinking|tool_use|tool_result|stop|length|list|error|é)?\"",
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let object = vec((names, inner.clone()), 0..6).prop_map(|members| {
            let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}}}", members.join(","))
        });
        prop_oneof![object, vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(",")))]
    })
}
