use super::calls::Body;

/// How a family marks thinking and calls in what it writes; found from its chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnswerFormat {
    is_harmony: bool,
    pub(super) thinking: (&'static str, &'static str),
    pub(super) calls: Vec<CallFormat>,
    /// An answer that is nothing but the JSON of a call is one.
    pub(super) bare_json: bool,
}

/// A part of what a model wrote, made again out of what was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rewritten {
    /// Names of control tokens.
    Mark(String),
    /// Text, whatever it spells.
    Text(String),
}

/// One way to mark calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallFormat {
    pub(super) open: &'static str,
    /// Without one, calls end with the answer.
    pub(super) close: Option<&'static str>,
    pub(super) body: Body,
}

const CALL_FORMATS: [CallFormat; 9] = [
    // Hermes and Qwen (JSON), Qwen3-Coder and 3.5 (functions and parameters), GLM (keys and values).
    CallFormat { open: "<tool_call>", close: Some("</tool_call>"), body: Body::ToolCall },
    CallFormat { open: "<|tool_call>", close: Some("<tool_call|>"), body: Body::Gemma },
    CallFormat { open: "<|tool_call_start|>", close: Some("<|tool_call_end|>"), body: Body::Python },
    CallFormat { open: "[TOOL_CALLS]", close: None, body: Body::Mistral },
    CallFormat {
        open: "<｜tool▁calls▁begin｜>", close: Some("<｜tool▁calls▁end｜>"), body: Body::DeepSeek
    },
    CallFormat { open: "<｜DSML｜tool_calls>", close: Some("</｜DSML｜tool_calls>"), body: Body::Dsml },
    CallFormat { open: "<｜DSML｜function_calls>", close: Some("</｜DSML｜function_calls>"), body: Body::Dsml },
    CallFormat { open: "<|tool_call|>", close: Some("<|/tool_call|>"), body: Body::Json },
    CallFormat { open: "<|python_tag|>", close: None, body: Body::Llama },
];

/// Inside of calls.
const INNER_MARKS: [&str; 8] = [
    "｜DSML｜",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "[ARGS]",
    "[CALL_ID]",
    "<|\"|>",
    "<|python_end|>",
];

/// How gpt-oss marks everything it writes.
pub(super) const HARMONY_MARKS: [&str; 7] =
    ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"];

impl AnswerFormat {
    pub(crate) fn of(template: &str) -> Self {
        let has = |mark: &str| template.contains(mark);
        let thinking = if has("<|channel>") {
            ("<|channel>thought", "<channel|>")
        } else if has("[THINK]") {
            ("[THINK]", "[/THINK]")
        } else {
            ("<think>", "</think>")
        };
        // The template of DeepSeek builds its tags from parts.
        let is_used = |format: &CallFormat| match format.body {
            Body::Dsml => has("｜DSML｜"),
            _ => has(format.open),
        };
        Self {
            is_harmony: has("<|channel|>") && has("<|message|>"),
            thinking,
            calls: CALL_FORMATS.into_iter().filter(is_used).collect(),
            // Llama's instructions, which it follows without a mark as often as with one.
            bare_json: has("\"parameters\": dictionary of argument name and its value"),
        }
    }

    pub(super) const fn is_harmony(&self) -> bool {
        self.is_harmony
    }

    /// Whether the token of that name says something about an answer, although it is no text. `offers_tools`: calls
    /// are expected.
    pub(crate) fn reads(&self, name: &str, offers_tools: bool) -> bool {
        let thinking = [self.thinking.0, self.thinking.1];
        // The name of Gemma's channel follows its token.
        let is_thinking = thinking.iter().any(|tag| *tag == name || (name.len() > 3 && tag.starts_with(name)));
        let is_call = |format: &CallFormat| format.open == name || format.close == Some(name);
        (self.is_harmony && HARMONY_MARKS.contains(&name))
            || is_thinking
            || (offers_tools && (self.calls.iter().any(is_call) || INNER_MARKS.contains(&name)))
    }

    /// The marks by which the rest of an answer is read, apart from its end; `is_text`: it has come to its text, and thinks
    /// no more. `offers_tools`: calls are expected.
    pub(crate) fn marks_ahead(&self, offers_tools: bool, is_text: bool) -> Vec<&'static str> {
        if self.is_harmony {
            return if is_text && !offers_tools { Vec::new() } else { vec!["<|channel|>", "<|message|>"] };
        }
        let calls = self.calls.iter().filter(|_| offers_tools).map(|call| call.open);
        calls.chain((!is_text).then_some(self.thinking.1)).collect()
    }

    /// Whether a prompt leaves thinking open.
    pub(crate) fn leaves_thinking_open(&self, prompt: &str) -> bool {
        !self.is_harmony && prompt.trim_end().ends_with(self.thinking.0)
    }

    /// What a model wrote so far whose thinking and text these are. `starts_thinking`: the prompt ends with an open tag.
    pub(crate) fn rewritten(&self, starts_thinking: bool, thinking: &str, text: &str) -> Vec<Rewritten> {
        let (thinks, answers) = (!thinking.is_empty(), !text.is_empty());
        let (mut parts, mut mark) = (Vec::new(), String::new());
        if self.is_harmony {
            if thinks {
                mark.push_str("<|channel|>analysis<|message|>");
                parts.extend([Rewritten::Mark(std::mem::take(&mut mark)), Rewritten::Text(thinking.to_owned())]);
                mark.push_str("<|end|><|start|>assistant");
            }
            if answers {
                mark.push_str("<|channel|>final<|message|>");
                parts.extend([Rewritten::Mark(mark), Rewritten::Text(text.to_owned())]);
            }
            return parts;
        }
        if thinks && !starts_thinking {
            parts.push(Rewritten::Mark(self.thinking.0.to_owned()));
        }
        if thinks {
            parts.push(Rewritten::Text(thinking.to_owned()));
        }
        if answers && (thinks || starts_thinking) {
            // White space after thinking is no part of an answer, and this much is what models write there.
            parts.extend([Rewritten::Mark(self.thinking.1.to_owned()), Rewritten::Text(format!("\n\n{text}"))]);
        } else if answers {
            parts.push(Rewritten::Text(text.to_owned()));
        }
        parts
    }

    /// What ends a thinking part.
    pub(crate) const fn thinking_end(&self) -> &str {
        self.thinking.1
    }
}
