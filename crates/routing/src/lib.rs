//! Judges: policy, demand and readings in, a decision with its reason out.
//!
//! It does no I/O, reads no clock and starts no task; everything it needs is an argument, so the same arguments always
//! give the same decision. It never sends anything anywhere: `app` does what the decision says. A reading that is
//! unknown is never taken for zero or for fine, and the decision says that it is unknown. Start at [`decide()`], [`fit()`] and
//! [`Guard`]; [`case`] asks them in words.

#![warn(missing_docs)]

pub mod case;
mod decide;
mod decision;
mod demand;
mod egress;
mod fit;
mod growth;
mod guard;
mod here;
mod hysteresis;
mod node_option;
mod outlook;
mod policy;
mod pulse;
mod rank;
mod readings;
mod speed;
mod trend;
mod wiring;
mod words;

pub use decide::decide;
pub use decision::{Alternative, Decision, Fit, ReadingCheck, Reason, Target, Verdict};
pub use demand::{Demand, LocalModel, Place, PlaceChoice, Running};
pub use egress::{EgressPass, Refusal, may_leave};
pub use fit::fit;
pub use guard::{Advice, Concern, Facts, Guard, Measure, Setup};
pub use node_option::{Continuation, NodeOption, Trust};
pub use outlook::{Outlook, Trouble, TroubleKind};
pub use policy::{OffloadMode, Policy};
pub use speed::{Calibration, Speed, SpeedForecast};
pub use wiring::may_wire;
