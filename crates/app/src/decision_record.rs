use routing::{Concern, Decision, ReadingCheck, Target};
use serde::{Deserialize, Serialize};
use store::{Segment, StoredMessage};

/// A decision as it was explained to the user: what is stored with an answer and shown again later. Numbers are kept
/// as they were told, because the readings behind them are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// `here`, `node` or `refuse`.
    pub target: String,
    /// The place in words: `Here`, `On studio`.
    pub place: String,
    /// The reason's name, one of `routing::Reason::as_str`.
    pub reason: String,
    /// The reason in a few words.
    pub sentence: String,
    /// What would have made it otherwise.
    #[serde(default)]
    pub counterfactual: Option<String>,
    /// The readings it was made from, with the limit each was held against.
    #[serde(default)]
    pub readings: Vec<ReadingRecord>,
    /// The other places that were considered.
    #[serde(default)]
    pub alternatives: Vec<AlternativeRecord>,
}

/// One reading of a [`DecisionRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadingRecord {
    /// What was read.
    pub name: String,
    /// Its value with the unit, or `unknown`.
    pub value: String,
    /// The limit with the unit.
    pub limit: Option<String>,
    /// Whether the limit was exceeded; `None` where the reading is unknown.
    pub exceeded: Option<bool>,
}

/// One place that wasn't chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlternativeRecord {
    /// The place in words.
    pub place: String,
    /// What would have happened there.
    pub outcome: String,
}

impl DecisionRecord {
    /// What was done about `concern` for an answer that runs where `decision` said.
    pub(crate) fn of_concern(decision: &Self, concern: &Concern, sentence: &str) -> Self {
        Self {
            reason: concern.reason.as_str().to_owned(),
            sentence: sentence.to_owned(),
            counterfactual: None,
            readings: records(&concern.readings),
            ..decision.clone()
        }
    }
}

fn records(readings: &[ReadingCheck]) -> Vec<ReadingRecord> {
    let record = |reading: &ReadingCheck| ReadingRecord {
        name: reading.name.to_owned(),
        value: reading.value.clone(),
        limit: reading.limit.clone(),
        exceeded: reading.exceeded,
    };
    readings.iter().map(record).collect()
}

impl From<&Decision> for DecisionRecord {
    fn from(decision: &Decision) -> Self {
        Self {
            target: match decision.target {
                Target::Here { .. } => "here",
                Target::Node { .. } => "node",
                Target::Refuse => "refuse",
            }
            .to_owned(),
            place: decision.place.clone(),
            reason: decision.reason.as_str().to_owned(),
            sentence: decision.sentence.clone(),
            counterfactual: decision.counterfactual.clone(),
            readings: records(&decision.readings),
            alternatives: decision
                .alternatives
                .iter()
                .map(|other| AlternativeRecord { place: other.place.clone(), outcome: other.outcome.clone() })
                .collect(),
        }
    }
}

/// The decision of the move that began a part of an answer; `None` for the first part.
pub fn decision_of_segment(segment: &Segment) -> Option<DecisionRecord> {
    serde_json::from_str(segment.decision_json.as_deref()?).ok()
}

/// The decision that was stored with an answer.
pub fn decision_of(message: &StoredMessage) -> Option<DecisionRecord> {
    serde_json::from_str(message.decision_json.as_deref()?).ok()
}
