//! What the tests of several crates need: model files small enough to build on the spot, and a node that does what its
//! script says. A dev-dependency only. Nothing here sleeps, and nothing leaves this machine.

pub mod folder;
pub mod gguf;
pub mod moe;
pub mod node;
