//! Keeps an answer going wherever it is written: here, on a node, and from one to the other while it is being written.
//!
//! [`answer()`] asks its [`Host`] where to begin, hands on what the backend there says, and moves the answer when the
//! host's watch over this machine advises it, when the user wants it, or when the backend fails. A move makes before it
//! breaks: the new place reads what is written so far while the old one writes on; only then is the rest handed over, and
//! if the new place fails before its first token, the old one just goes on. The [`Ledger`] says which place wrote which
//! part, so that nothing is lost and nothing doubled.
//!
//! It does no I/O and knows no engine, no network and no store: all of them are behind [`Host`]. Time is tokio's, so that
//! a test runs it in virtual time: `tests/simulation.rs` does so many thousand times.

#![warn(missing_docs)]

mod answer;
mod continuation;
mod host;
mod ledger;

pub use answer::{HandoffEvent, answer};
pub use continuation::{CannotContinue, continue_request};
pub use host::{BackendStream, Failure, Host, Opened, Signal, Takeover, Watch};
pub use ledger::{Ended, Ledger, LedgerError, Segment};
