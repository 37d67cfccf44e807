use chat::Tool;
use proptest::prelude::*;

use super::*;

fn tools() -> Tools {
    let search = r#"{"type":"object","properties":{"query":{"type":"string"},"limit":{"type":"integer"},"tags":{"type":"array"}}}"#;
    Tools::new(&[
        Tool { name: "search".into(), parameters: search.into(), ..Tool::default() },
        Tool { name: "now".into(), ..Tool::default() },
    ])
}

/// What came out: thinking in slashes, calls in braces, the rest as it is.
fn written(events: impl IntoIterator<Item = ChatEvent>) -> String {
    let mut out = String::new();
    let mut is_thinking = false;
    for event in events {
        let thinks = matches!(event, ChatEvent::Thinking(_));
        if thinks != is_thinking {
            out.push('/');
            is_thinking = thinks;
        }
        match event {
            ChatEvent::Text(text) | ChatEvent::Thinking(text) => {
                assert!(!text.is_empty());
                out.push_str(&text);
            }
            ChatEvent::ToolCall { index, call } => {
                out.push_str(&format!("{{{index} {} {}}}", call.name, call.arguments.expose()));
            }
            other => panic!("{other:?}"),
        }
    }
    if is_thinking {
        out.push('/');
    }
    out
}

fn run(template: &str, text: &str, stops: &[&str], with_tools: bool, starts_thinking: bool, size: usize) -> String {
    let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
    let tools = if with_tools { tools() } else { Tools::default() };
    let mut answer = AnswerText::new(&stops, &AnswerFormat::of(template), tools, starts_thinking, 1);
    let characters: Vec<char> = text.chars().collect();
    let mut events = Vec::new();
    for piece in characters.chunks(size) {
        events.extend(answer.push(&piece.iter().collect::<String>()));
    }
    events.extend(answer.finish());
    written(events)
}

/// Feeds `text` in pieces of every size; whatever the size, the same must come out.
fn check_all(template: &str, text: &str, stops: &[&str], with_tools: bool, starts_thinking: bool, expected: &str) {
    for size in 1..=text.chars().count().max(1) {
        let found = run(template, text, stops, with_tools, starts_thinking, size);
        assert_eq!(found, expected, "{text:?} in pieces of {size}");
    }
}

fn check(template: &str, text: &str, expected: &str) {
    check_all(template, text, &[], true, false, expected);
}

fn check_plain(text: &str, stops: &[&str], starts_thinking: bool, expected: &str) {
    check_all("", text, stops, false, starts_thinking, expected);
}

#[test]
fn plain_text_stays_as_it_is() {
    check_plain("a < b, <th", &[], false, "a < b, <th");
    check_plain(" \n leading", &[], false, " \n leading");
    check_plain(" \n ", &[], false, " \n ");
}

#[test]
fn thinking_is_told_apart() {
    check_plain("<think>\nhm</think>\n\nSo: 56", &[], false, "/\nhm/So: 56");
    check_plain("hm</think>So", &[], true, "/hm/So");
    check_plain("<think>never ends</th", &[], false, "/never ends</th/");
    check_plain("text <think> in the middle", &[], false, "text <think> in the middle");
    check_all("[THINK]", "[THINK]hm[/THINK]So", &[], false, false, "/hm/So");
    check_all("<|channel>", "<|channel>thought\nhm<channel|>So", &[], false, false, "/\nhm/So");
}

#[test]
fn stop_strings_never_leak() {
    check_plain("one END two", &["END"], false, "one ");
    check_plain("one EN two E", &["END"], false, "one EN two E");
    check_plain("aab", &["aab"], false, "");
    check_plain("x 東京 y", &["東京"], false, "x ");
    check_plain("first: second", &["second", "t: s"], false, "firs");
    check_plain("one long stop", &["one long", "n"], false, "o");
    check_plain("one long stop", &["one", "e"], false, "");
    check_plain("<think>END</think>a END", &["END"], false, "/END/a ");
    let call = "EN<tool_call>{\"name\": \"now\"}</tool_call>D";
    check_all("<tool_call>", call, &["END"], true, false, "EN{0 now {}}D");
}

#[test]
fn without_tools_a_call_is_text() {
    let text = "<tool_call>{\"name\": \"now\"}</tool_call>";
    check_all("<tool_call>", text, &[], false, false, text);
}

#[test]
fn hermes_and_qwen_write_json() {
    let template = "<tool_call>";
    let call = r#"<tool_call>
{"name": "search", "arguments": {"query": "a \"b\" </tool_call> \n", "limit": 2}}
</tool_call>"#;
    let read = r#"{0 search {"query":"a \"b\" </tool_call> \n","limit":2}}"#;
    check(template, &format!("I look.\n{call}"), &format!("I look.\n{read}"));
    check(template, &format!("<think>hm</think>\n\n{call}\n"), &format!("/hm/{read}"));
    check(
        template,
        &format!("{call}\n<tool_call>{{\"name\": \"now\"}}</tool_call> \n"),
        &format!("{read}{{1 now {{}}}}"),
    );
    check(template, &format!("{call}\n\nDone"), &format!("{read}\n\nDone"));
    // The model ended without the last mark.
    check(template, r#"<tool_call>{"name": "now", "arguments": {}}"#, "{0 now {}}");
}

#[test]
fn what_is_no_call_is_text_and_nothing_is_lost() {
    let template = "<tool_call>";
    for text in [
        "<tool_call>{\"name\": 5}</tool_call> x",
        "<tool_call>not a call at all</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>",
        "<tool_call>{\"name\": \"now\", \"argum",
        "<tool_call><function=search><parameter=query>x</function></tool_call> y",
        "a <tool_cal",
    ] {
        check(template, text, text);
    }
    check(
        template,
        "<tool_call>{]</tool_call><tool_call>{\"name\": \"now\"}</tool_call>",
        "<tool_call>{]</tool_call>{0 now {}}",
    );
    check("[TOOL_CALLS]", "[TOOL_CALLS]now[ARGS]{", "[TOOL_CALLS]now[ARGS]{");
    check(
        "<|tool_call_start|>",
        "<|tool_call_start|>[now(]<|tool_call_end|>",
        "<|tool_call_start|>[now(]<|tool_call_end|>",
    );
}

#[test]
fn qwen_coder_writes_functions_and_parameters() {
    let text = "<tool_call>\n<function=search>\n<parameter=query>\n5\n</parameter>\n<parameter=limit>\n5\n</parameter>\n\
                <parameter=tags>\n[\"x\"]\n</parameter>\n<parameter=other>\nNone\n</parameter>\n</function>\n</tool_call>";
    check("<tool_call>", text, r#"{0 search {"query":"5","limit":5,"tags":["x"],"other":null}}"#);
    check("<tool_call>", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "{0 now {}}");
}

#[test]
fn glm_writes_keys_and_values() {
    let text = "<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>a \"b\"\n c</arg_value>\n<arg_key>limit</arg_key>\n\
                <arg_value>2</arg_value>\n</tool_call>\n<tool_call>now</tool_call>";
    check("<tool_call>", text, r#"{0 search {"query":"a \"b\"\n c","limit":2}}{1 now {}}"#);
}

#[test]
fn llama_writes_json_with_a_mark_or_without() {
    let template = "<|python_tag|> \"parameters\": dictionary of argument name and its value";
    let call = r#"{"name": "search", "parameters": {"query": "x"}}"#;
    let read = r#"{0 search {"query":"x"}}"#;
    check(template, call, read);
    check(
        template,
        &format!("\n{call}; {}", call.replace("search", "now")),
        &format!("{read}{{1 now {{\"query\":\"x\"}}}}"),
    );
    check(template, &format!("<|python_tag|>{call}"), read);
    check(template, "<|python_tag|>search.call(query=\"x\")", read);
    check(template, "<|python_tag|>print(1)", "<|python_tag|>print(1)");
    check(template, r#"{"name": "other", "parameters": {}}"#, r#"{"name": "other", "parameters": {}}"#);
    check(template, r#"{"name": "search"}"#, r#"{"name": "search"}"#);
    check(template, "{\"a\": 1", "{\"a\": 1");
}

#[test]
fn mistral_writes_a_list_or_one_mark_for_each_call() {
    let template = "[TOOL_CALLS]";
    let list = r#"[TOOL_CALLS] [{"name": "search", "arguments": {"query": "x"}, "id": "abc123456"}, {"name": "now"}]"#;
    check(template, list, r#"{0 search {"query":"x"}}{1 now {}}"#);
    let marks = r#"Let me see.[TOOL_CALLS]search[CALL_ID]c1[ARGS]{"query": "x"}[TOOL_CALLS]now[ARGS]{}"#;
    check(template, marks, r#"Let me see.{0 search {"query":"x"}}{1 now {}}"#);
    let mut answer = AnswerText::new(&[], &AnswerFormat::of(template), tools(), false, 1);
    answer.push(marks);
    let ids: Vec<String> = answer
        .finish()
        .into_iter()
        .map(|event| match event {
            ChatEvent::ToolCall { call, .. } => call.id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids[0], "c1");
    assert!(ids[1].len() == 9 && ids[1].chars().all(|c| c.is_ascii_alphanumeric()), "{ids:?}");
}

#[test]
fn deepseek_writes_three_ways() {
    let v31 = "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>{\"query\": \"x\"}<｜tool▁call▁end｜>\
               <｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let read = r#"Ok.{0 search {"query":"x"}}{1 now {}}"#;
    check("<｜tool▁calls▁begin｜>", v31, read);
    let r1 = "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n{\"query\": \"x\"}\n```\
              <｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    check("<｜tool▁calls▁begin｜>", r1, read);
    let v4 = "Ok.<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"search\">\n<｜DSML｜parameter name=\"query\" string=\"true\">x\
              </｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    check("'｜DSML｜'", v4, read);
    check("'｜DSML｜'", &v4.replace("tool_calls", "function_calls"), read);
}

#[test]
fn lfm_writes_python() {
    let text = "<|tool_call_start|>[search(query='a \"b\" \\'c\\'', tags=[\"x\", 'y'], limit=-2.5, other={\"a\": None}), now()]\
                <|tool_call_end|>Wait.";
    let read = r#"{0 search {"query":"a \"b\" 'c'","tags":["x","y"],"limit":-2.5,"other":{"a":null}}}{1 now {}}Wait."#;
    check("<|tool_call_start|>", text, read);
}

#[test]
fn gemma_writes_with_its_own_quotes() {
    let text = "<|tool_call>call:search{filters:{exact:true,tags:[<|\"|>x<|\"|>]},query:<|\"|>a \"b\" {c}<|\"|>,limit:3}\
                <tool_call|><|tool_call>call:now{}<tool_call|>";
    let read = r#"{0 search {"filters":{"exact":true,"tags":["x"]},"query":"a \"b\" {c}","limit":3}}{1 now {}}"#;
    check("<|channel> <|tool_call>", text, read);
}

const HARMONY: &str = "<|channel|><|message|>";

#[test]
fn gpt_oss_writes_messages_with_channels() {
    let text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>So <b>.<|return|>";
    check(HARMONY, text, "/hm/So <b>.");
    let call = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.search \
                <|constrain|>json<|message|>{\"query\": \"x\"}<|call|>";
    let read = r#"/hm/{0 search {"query":"x"}}"#;
    check(HARMONY, call, read);
    // The end of a call is the end of generation, and its token no text.
    check(HARMONY, call.trim_end_matches("<|call|>"), read);
    let other_order = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.now<|channel|>\
                       commentary json<|message|>{}<|call|>";
    check(HARMONY, other_order, "I look.{0 now {}}");
    check(HARMONY, "an answer without a header", "an answer without a header");
    check(HARMONY, "<|channel|>commentary to=functions.now<|message|>{", "{");
    check(HARMONY, "<|channel|>analysis<|mess", "");
    check_all(HARMONY, "<|channel|>final<|message|>one END", &["END"], false, false, "one ");
}

#[test]
fn the_marks_of_a_format_are_read_although_they_are_no_text() {
    let harmony = AnswerFormat::of(HARMONY);
    assert!(harmony.reads("<|channel|>", false) && !harmony.reads("<|im_end|>", true));
    let mistral = AnswerFormat::of("[TOOL_CALLS] [THINK]");
    assert!(mistral.reads("[TOOL_CALLS]", true) && !mistral.reads("[TOOL_CALLS]", false));
    assert!(mistral.reads("[THINK]", false) && mistral.reads("[ARGS]", true));
    let gemma = AnswerFormat::of("<|channel>");
    assert!(gemma.reads("<|channel>", false) && gemma.reads("<channel|>", false) && !gemma.reads("<", false));
}

#[test]
fn an_open_tag_in_the_prompt_is_seen() {
    assert!(AnswerFormat::of("<think>").leaves_thinking_open("…assistant\n<think>\n"));
    assert!(!AnswerFormat::of("<think>").leaves_thinking_open("…<think>\n\n</think>\n\n"));
}

proptest! {
    /// Anything at all, cut anywhere, gives the same; and without tools and tags nothing is lost.
    #[test]
    fn any_text_in_any_pieces_gives_the_same(
        parts in prop::collection::vec(prop::sample::select(vec![
            "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"now\"", ", \"arguments\": {", "}", "<function=now>",
            "</function>", "<parameter=a>", "</parameter>", "<|python_tag|>", "[TOOL_CALLS]", "now", "[ARGS]", "{}", "\n", " ", "x", "END",
            "<|channel|>", "analysis", "final", "commentary to=functions.now", "<|message|>", "<|end|>", "<|start|>", "assistant",
            "<|tool_call>", "call:now{", "<tool_call|>", "<|tool_call_start|>", "[now()]", "<|tool_call_end|>", "<", "<|", "東", "🌸",
            "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>now<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
        ]), 0..14),
        template in prop::sample::select(vec![
            "", "<tool_call>", "[TOOL_CALLS]", "<|channel|><|message|>", "<|tool_call>", "<|tool_call_start|>", "<｜tool▁calls▁begin｜>",
            "<|python_tag|> \"parameters\": dictionary of argument name and its value",
        ]),
        with_tools: bool,
        starts_thinking: bool,
        has_stop: bool,
        size in 1_usize..9,
    ) {
        let text = parts.concat();
        let stops: &[&str] = if has_stop { &["END"] } else { &[] };
        let whole = run(template, &text, stops, with_tools, starts_thinking, usize::MAX);
        prop_assert_eq!(&run(template, &text, stops, with_tools, starts_thinking, size), &whole);
        if !with_tools && !has_stop && !starts_thinking && template.is_empty() && !text.contains("think>") {
            prop_assert_eq!(whole, text);
        }
    }
}
