//! The product's vocabulary: what is asked, what comes back, and the units both are told in.
//!
//! Plain types only: no I/O, no async, no serde and no dependency on another workspace crate. IPC, HTTP and SQLite
//! each encode these types their own way, at their own edge. Start at [`ChatRequest`] and [`ChatEvent`].

#![warn(missing_docs)]

mod bytes;
mod date;
mod event;
mod redacted;
mod request;

pub use bytes::Bytes;
pub use date::civil_date;
pub use event::{ChatEvent, Finish, FinishReason, Progress, ScoredToken, Timings, TokenLogprob, Usage};
pub use redacted::Redacted;
pub use request::{
    ChatRequest, Message, OutputConstraint, RawText, ReasoningEffort, Role, SamplingParams, Tool, ToolCall, Written,
};
