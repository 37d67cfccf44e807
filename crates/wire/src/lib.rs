//! The JSON dialects that nodes and programs speak: bytes in, values out, and back.
//!
//! `nodes` decodes with it what `gateway` encodes with it, so one round trip covers both. It must never do I/O, read a
//! clock or decide anything, and whatever bytes come in, it answers with a value or an error: it never panics. Errors
//! name places and types, never the text of a message. Start at [`openai`], [`anthropic`] or [`ollama`] for the values
//! and at [`sse`] for the framing of a stream.

#![warn(missing_docs)]

pub mod anthropic;
mod json;
pub mod ollama;
pub mod openai;
mod request_error;
pub mod sse;
mod turn;
mod whole_answer;
