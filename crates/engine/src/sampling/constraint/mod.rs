use std::sync::Arc;
use std::thread;

use chat::OutputConstraint;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::GenerateError;
use crate::models::TokenId;

/// Bytes of the longest token that a constrained answer can use. Longer ones are runs of one character, and llguidance
/// takes 1024 at most.
const LONGEST_PIECE: usize = 256;

/// llguidance numbers tokens with 24 bits.
const MOST_TOKENS: usize = (1 << 24) - 1;

/// Bytes of all tokens together: llguidance numbers their nodes with 22 bits. The largest vocabularies have half.
const MOST_PIECE_BYTES: usize = (1 << 22) - 1;

/// Bytes of a schema.
const LONGEST_SCHEMA: usize = 128 << 10;

/// Bytes of a grammar. The time for tokens that are defined by one another grows with the third power of their depth, and
/// llguidance doesn't bound it: within this limit it stays below a few seconds.
const LONGEST_GRAMMAR: usize = 16 << 10;

/// Stack of the thread that compiles. llguidance follows references by recursion, and a source within its limit can hold
/// thousands, one inside the other; pages that aren't touched cost nothing.
const COMPILER_STACK: usize = 256 << 20;

/// White space between the parts of JSON, as llama.cpp allows it. JSON itself allows any amount, which a small model may
/// go on writing until its tokens are used up.
const WHITE_SPACE: &str = r"\x20|\x0A{1,2}[\x20\x09]{0,20}";

/// The tokens of a model in the form in which constraints walk them. The same for all answers of a model, and worth
/// keeping: a large vocabulary takes a good part of a second.
pub(crate) struct ConstraintVocabulary {
    factory: ParserFactory,
}

impl ConstraintVocabulary {
    /// `pieces` are the bytes that each token stands for, none where it stands for no text; `ends` are the tokens that
    /// end an answer.
    ///
    /// # Errors
    /// [`GenerateError::Constraint`] where the model has no token that ends an answer, or too many tokens.
    pub(crate) fn new(mut pieces: Vec<Vec<u8>>, ends: &[TokenId]) -> Result<Self, GenerateError> {
        for piece in &mut pieces {
            // 0xFF, which is in no UTF-8, marks special tokens to llguidance.
            if piece.len() > LONGEST_PIECE || piece.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
                piece.clear();
            }
        }
        let ends: Vec<TokenId> = ends.iter().copied().filter(|end| (*end as usize) < pieces.len()).collect();
        let Some(first_end) = ends.first() else {
            return Err(GenerateError::Constraint("the model has no token that ends an answer".to_owned()));
        };
        for end in &ends {
            pieces[*end as usize].clear();
        }
        if pieces.len() > MOST_TOKENS || pieces.iter().map(Vec::len).sum::<usize>() > MOST_PIECE_BYTES {
            return Err(GenerateError::Constraint("the model's vocabulary is too large".to_owned()));
        }
        let trie = TokTrie::from(&TokRxInfo::new(pieces.len() as u32, *first_end), &pieces).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| GenerateError::Constraint(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            // A state takes one or two kilobytes.
            max_lexer_states: 50_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory })
    }
}

/// What one answer may still be.
pub(crate) struct Constraint {
    matcher: Matcher,
    ends: Vec<TokenId>,
    is_suspended: bool,
}

impl Constraint {
    /// Compiles `output`. What that may cost is bounded, in time and in memory.
    ///
    /// # Errors
    /// [`GenerateError::InvalidRequest`] for a schema or grammar that isn't one, that nothing can satisfy, that uses a
    /// keyword which can't be enforced, or that costs too much.
    pub(crate) fn new(vocabulary: &ConstraintVocabulary, output: &OutputConstraint) -> Result<Self, GenerateError> {
        let (kind, grammar) = match output {
            OutputConstraint::Json => ("JSON schema", json_grammar(json!({ "type": "object" }))),
            OutputConstraint::JsonSchema(schema) => ("JSON schema", parse_schema(schema).and_then(json_grammar)),
            OutputConstraint::Grammar(grammar) => ("grammar", lark_grammar(grammar)),
        };
        let refused = |why: String| GenerateError::InvalidRequest(format!("the {kind} cannot be used: {why}"));
        let grammar = grammar.map_err(refused)?;
        let compile = || {
            let mut matcher = Matcher::new(vocabulary.factory.create_parser(grammar));
            // A grammar that nothing satisfies shows only here; so do some that cost too much.
            let _ = matcher.compute_mask_or_eos();
            matcher
        };
        let matcher = thread::scope(|scope| {
            let compiler = thread::Builder::new().name("engine-grammar".to_owned()).stack_size(COMPILER_STACK);
            let compiler = compiler.spawn_scoped(scope, compile).map_err(|error| refused(error.to_string()))?;
            compiler.join().map_err(|_| refused("compiling it failed".to_owned()))
        })?;
        if let Some(why) = matcher.get_error() {
            return Err(refused(first_lines(&why)));
        }
        let ends = vocabulary.factory.tok_env().tok_trie().eos_tokens().to_vec();
        Ok(Self { matcher, ends, is_suspended: false })
    }

    /// Lets everything pass but an end, until [`Self::resume`]: for what a model thinks before it answers.
    pub(crate) const fn suspend(&mut self) {
        self.is_suspended = true;
    }

    /// Holds again, where it was suspended: the next token is one of the answer.
    pub(crate) const fn resume(&mut self) {
        self.is_suspended = false;
    }

    /// Sets the logits of all tokens that cannot follow to −∞.
    ///
    /// # Errors
    /// [`GenerateError::Constraint`] where that costs too much, or nothing can follow.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), GenerateError> {
        if self.is_suspended {
            for end in &self.ends {
                if let Some(logit) = logits.get_mut(*end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            return Ok(());
        }
        let allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        // The model may compute more logits than there are tokens.
        let bits = allowed.as_slice().iter().copied().chain(std::iter::repeat(0));
        for (block, bits) in logits.chunks_mut(u32::BITS as usize).zip(bits) {
            if bits == 0 {
                block.fill(f32::NEG_INFINITY);
            } else if bits != u32::MAX {
                for (index, logit) in block.iter_mut().enumerate() {
                    if bits & (1 << index) == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on by `token`, one that the last mask allowed.
    ///
    /// # Errors
    /// [`GenerateError::Constraint`] where it cannot follow.
    pub(crate) fn accept(&mut self, token: TokenId) -> Result<(), GenerateError> {
        if self.is_suspended { Ok(()) } else { self.matcher.consume_token(token).map_err(failed) }
    }

    /// Whether the answer is whole and nothing can follow but its end.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn failed(error: impl ToString) -> GenerateError {
    GenerateError::Constraint(first_lines(&error.to_string()))
}

fn parse_schema(schema: &str) -> Result<Value, String> {
    check_length(schema, LONGEST_SCHEMA)?;
    match serde_json::from_str(schema).map_err(|error| error.to_string())? {
        // `true` is how JSON Schema says "anything".
        Value::Bool(true) => Ok(json!({})),
        Value::Object(mut schema) => {
            // llguidance's own settings, some of which make it pass over what it can't enforce.
            schema.remove("x-guidance");
            Ok(Value::Object(schema))
        }
        Value::Bool(false) => Err("it allows nothing".to_owned()),
        _ => Err("it must be an object".to_owned()),
    }
}

fn json_grammar(mut schema: Value) -> Result<TopLevelGrammar, String> {
    schema["x-guidance"] = json!({ "whitespace_pattern": WHITE_SPACE });
    Ok(TopLevelGrammar::from_json_schema(schema))
}

fn lark_grammar(grammar: &str) -> Result<TopLevelGrammar, String> {
    check_length(grammar, LONGEST_GRAMMAR)?;
    Ok(TopLevelGrammar::from_lark(grammar.to_owned()))
}

fn check_length(source: &str, most: usize) -> Result<(), String> {
    if source.len() > most {
        return Err(format!("it has {} bytes, more than {most}", source.len()));
    }
    Ok(())
}

/// llguidance's message without the state and the backtrace that follow it.
fn first_lines(message: &str) -> String {
    if message.starts_with("NoExtensionBias") {
        return "nothing satisfies it".to_owned();
    }
    let end = ["<non-verbose/>", "<backtrace>"].iter().filter_map(|mark| message.find(mark)).min();
    let message = message[..end.unwrap_or(message.len())].trim_end();
    message.chars().take(400).collect()
}

#[cfg(test)]
mod tests;
