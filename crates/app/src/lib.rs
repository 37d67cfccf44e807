//! The use cases: one public function for each thing a user can do, in the window, over HTTP or on the command line.
//!
//! It gathers readings, asks `routing`, starts the engine or a node and keeps the result in `store`. It orders steps
//! and decides nothing itself; it knows no HTTP, no window and no terminal. Start at [`App`], then follow
//! [`App::send_message`] through `reply.rs` and `answer.rs`.

#![warn(missing_docs)]

mod answer;
mod answer_host;
mod calibration;
mod completion;
mod conversations;
mod decision_record;
mod depth_bench;
mod disturbance;
mod error;
mod guess_bench;
mod history;
mod library;
mod model_list;
mod node_list;
mod pressure;
mod remote;
mod rendered_answer;
mod reply;
mod settings;
mod speeds;
mod start;
mod takeover;
mod trust;
mod verdict;
mod vitals_watch;

use std::sync::Arc;

pub use calibration::{Calibration, MeasuredOn};
pub use chat;
pub use completion::{Completion, CompletionEvent};
pub use decision_record::{AlternativeRecord, DecisionRecord, ReadingRecord, decision_of, decision_of_segment};
pub use depth_bench::{DepthPlan, DepthSpeed, Spread, SustainedSpeed};
pub use engine::{
    Condition, Draft, Footprint, Guesses, KvType, LoadedModel, ModelHeader, Occupancy, Perplexity, computes_on_gpu,
    device_name, instruction_set,
};
pub use error::{AppError, ErrorCode};
pub use guess_bench::{GuessPlan, GuessSpeed};
pub use history::{AskedBy, DecisionEntry, DecisionKind, DecisionNote};
pub use library::AddHow;
pub use model_list::{ModelEntry, ModelOrigin};
pub use node_list::NodeView;
pub use nodes::{NodeAddress, NodeState, NodeStatus};
pub use pressure::{
    NoThresholds, PressureCurve, PressureEnd, PressurePlan, PressureStep, PressureThresholds, hold_memory,
};
pub use reply::{ReplyEvent, ReplyStream, SendMessage};
pub use routing::{Fit, OffloadMode, PlaceChoice, Trust, Verdict, case};
pub use settings::{CONTEXT_LENGTHS, Settings, Theme};
pub use start::{AppConfig, IDLE_UNLOAD, StartError, default_data_dir};
pub use store::{
    Conversation, ConversationId, ConversationSummary, DecisionId, MessageId, MessageState, Segment, StoredMessage,
};
pub use verdict::{FileVerdict, ModelVerdict, Refusal};
pub use vitals;
pub use vitals_watch::Vitals;

/// The running application. Clones are handles of the same one; [`App::shutdown`] ends it for all.
#[derive(Clone)]
pub struct App {
    pub(crate) inner: Arc<start::Inner>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("App")
    }
}
