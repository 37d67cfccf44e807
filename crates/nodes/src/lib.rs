//! A client for one remote node: any server that speaks OpenAI's chat completions.
//!
//! It finds out what a node is ([`NodeClient::probe`]) and streams one answer from it ([`NodeClient::chat`]), or the
//! rest of one that was begun elsewhere ([`NodeClient::complete`]). It knows one node at a time: it must never choose among nodes or try another one, which are `routing`'s and `app`'s to do, and it
//! must never send a key anywhere but to the address it was given for. An answer that stops before its end is an error,
//! never a shorter answer. Start at [`NodeClient`].

#![warn(missing_docs)]

mod address;
mod answer;
mod client;
mod continuation;
mod error;
mod meter;
mod probe;
mod retry_after;

pub use address::NodeAddress;
pub use answer::NodeStream;
pub use client::{NodeClient, NodeConfig, Seam, TextPrompt};
pub use continuation::probe_request;
pub use error::{NodeError, Silence};
pub use probe::{NodeState, NodeStatus};
