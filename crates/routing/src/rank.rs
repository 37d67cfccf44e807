//! Which nodes may and can take the work, and which of them is asked first.

use std::cmp::{Ordering, Reverse};

use crate::{Continuation, Demand, NodeOption, Place, Policy, Reason, Refusal, may_leave, words};

/// A new chat with a pasted page, where the prompt wasn't counted.
const ASSUMED_PROMPT: usize = 1000;
/// The middle of what people's answers have.
const ASSUMED_ANSWER: usize = 500;
/// An answer that is longer than expected already goes on for a while.
pub(crate) const LEAST_ANSWER: usize = 100;
/// A server that was never measured is taken for a small one: it is preferred to one that is known to be slow, and once
/// it has answered it is measured.
pub(crate) const ASSUMED_DECODE: f64 = 20.0;
/// Prompts are read in parallel: ten times as fast as answers are written is what the slower machines reach.
const PREFILL_PER_DECODE: f64 = 10.0;
/// Reading some gigabytes of weights from a disk.
const COLD_START_SECONDS: f64 = 10.0;
/// An unknown queue is worse than an empty one and not as bad as one that is known to be there.
const UNKNOWN_QUEUE: f64 = 0.5;

/// What is left to do for an answer, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) to_read: usize,
    to_write: usize,
}

/// How fast a place would do it; what isn't known is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    pub(crate) queue: f64,
    pub(crate) is_cold: bool,
    pub(crate) cached: usize,
    pub(crate) prefill: Option<f64>,
    pub(crate) decode: Option<f64>,
}

impl Work {
    pub(crate) fn of(demand: &Demand) -> Self {
        let written = demand.running.as_ref().map_or(0, |running| running.tokens);
        let answer = demand.answer_tokens.unwrap_or(ASSUMED_ANSWER).saturating_sub(written);
        Self {
            to_read: demand.tokens_to_read().unwrap_or(ASSUMED_PROMPT.saturating_add(written)),
            to_write: answer.max(if written > 0 { LEAST_ANSWER } else { 1 }),
        }
    }

    /// When it would be done, in seconds from now: those before it, the model's start, what has to be read, the answer.
    pub(crate) fn seconds(self, pace: Pace) -> f64 {
        let decode = known_speed(pace.decode).unwrap_or(ASSUMED_DECODE);
        let prefill = known_speed(pace.prefill).unwrap_or(decode * PREFILL_PER_DECODE);
        let (to_read, to_write) = (self.to_read as f64, self.to_write as f64);
        let start = if pace.is_cold { COLD_START_SECONDS } else { 0.0 };
        let own = self.to_read.saturating_sub(pace.cached) as f64 / prefill + to_write / decode;
        // Those who wait before it are taken to want as much, and to have nothing cached.
        start + own + pace.queue * (to_read / prefill + to_write / decode)
    }
}

/// A node with whether it may and can be asked, and when it would be done.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) node: &'a NodeOption,
    /// Why it can't be asked, whatever else is known of it.
    pub(crate) bar: Option<Bar>,
    /// Tokens of this request that it needn't read again.
    pub(crate) cached: usize,
    /// Seconds until it would be done.
    pub(crate) finish: f64,
}

/// Why a node isn't asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bar {
    MayNot(Refusal),
    Failed,
    /// Its context holds so many tokens, and so many have to be read.
    TooShort(usize, usize),
    CannotGoOn,
    /// Whether it can go on with a running answer wasn't probed.
    MayNotGoOn,
}

impl<'a> Candidate<'a> {
    pub(crate) fn of(policy: &Policy, demand: &Demand, node: &'a NodeOption) -> Self {
        let place = Place::Node(node.id.clone());
        let is_running_there = demand.running.as_ref().is_some_and(|running| running.place == place);
        let is_moving = demand.running.is_some() && !is_running_there;
        let to_read = demand.tokens_to_read();
        let too_short = node.context_len.zip(to_read).filter(|(holds, to_read)| to_read >= holds);
        let bar = if let Err(refusal) = may_leave(policy, demand, node) {
            Some(Bar::MayNot(refusal))
        } else if demand.has_failed(&place) {
            Some(Bar::Failed)
        } else if let Some((holds, to_read)) = too_short {
            Some(Bar::TooShort(holds, to_read))
        } else {
            match node.continuation {
                _ if !is_moving => None,
                Some(Continuation::Tokens | Continuation::Text | Continuation::Prefix) => None,
                Some(Continuation::None) => Some(Bar::CannotGoOn),
                None => Some(Bar::MayNotGoOn),
            }
        };
        let work = Work::of(demand);
        let cached = if is_running_there { work.to_read } else { node.prefix_tokens.unwrap_or(0).min(work.to_read) };
        let pace = Pace {
            // A running answer doesn't queue again where it is.
            queue: if is_running_there { 0.0 } else { node.queue.map_or(UNKNOWN_QUEUE, |ahead| ahead as f64) },
            is_cold: node.warm == Some(false) && !is_running_there,
            cached,
            prefill: node.prefill_tokens_per_sec,
            decode: node.decode_tokens_per_sec,
        };
        Self { node, bar, cached, finish: work.seconds(pace) }
    }

    /// It answered last and has the model.
    pub(crate) fn is_ready(&self) -> bool {
        self.bar.is_none() && self.node.reachable == Some(true) && self.node.has_model
    }

    /// What is known of it, for the list of alternatives.
    pub(crate) fn describe(&self) -> String {
        let described = describe(self.node);
        let finish = (self.bar.is_none() && self.node.reachable.is_some_and(|answers| answers))
            .then_some(self.finish)
            .filter(|_| known_speed(self.node.decode_tokens_per_sec).is_some())
            .map_or_else(String::new, |finish| format!(", done in {}", words::about(finish)));
        match self.bar {
            Some(bar) => format!("not asked: {}; {described}", bar.sentence()),
            None => format!("{described}{finish}"),
        }
    }
}

impl Bar {
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::MayNot(refusal) => refusal.reason(),
            Self::Failed => Reason::NodeUnreachable,
            Self::TooShort(..) => Reason::TooLong,
            Self::CannotGoOn | Self::MayNotGoOn => Reason::CannotContinue,
        }
    }

    /// For after "not asked:", and after a node's name and a colon.
    pub(crate) fn sentence(self) -> String {
        match self {
            Self::MayNot(refusal) => refusal.sentence().to_owned(),
            Self::Failed => "it failed during this answer".to_owned(),
            Self::TooShort(holds, to_read) => {
                format!("its context is {} and this chat has {}", words::context(holds), words::tokens(to_read))
            }
            Self::CannotGoOn => "it takes new messages only, and this answer is half written".to_owned(),
            Self::MayNotGoOn => "whether it can go on with a half-written answer is unknown".to_owned(),
        }
    }
}

/// The best of the nodes that answered last and have the model.
pub(crate) fn best_ready<'a, 'n>(candidates: &'a [Candidate<'n>]) -> Option<&'a Candidate<'n>> {
    best(candidates.iter().filter(|candidate| candidate.is_ready()))
}

/// The best of the nodes that have the model and aren't known to be gone: better than refusing.
pub(crate) fn best_with_model<'a, 'n>(candidates: &'a [Candidate<'n>]) -> Option<&'a Candidate<'n>> {
    best(candidates.iter().filter(|candidate| can_be_asked(candidate) && candidate.node.has_model))
}

/// The best of the nodes that aren't known to be gone, for when the user wants a node. One that doesn't list the model
/// comes last: many servers have one model and answer to any name.
pub(crate) fn best_at_all<'a, 'n>(candidates: &'a [Candidate<'n>]) -> Option<&'a Candidate<'n>> {
    best(candidates.iter().filter(|candidate| can_be_asked(candidate)))
}

/// A speed that can be compared and divided by.
pub(crate) fn known_speed(tokens_per_sec: Option<f64>) -> Option<f64> {
    tokens_per_sec.filter(|speed| speed.is_finite() && *speed > 0.0)
}

fn can_be_asked(candidate: &Candidate<'_>) -> bool {
    candidate.bar.is_none() && candidate.node.reachable != Some(false)
}

fn describe(node: &NodeOption) -> String {
    let mut parts = vec![
        match node.reachable {
            Some(true) => "ready".to_owned(),
            Some(false) => return "doesn't answer".to_owned(),
            None => "not asked yet".to_owned(),
        },
        if node.has_model { "has the model".to_owned() } else { "doesn't list the model".to_owned() },
    ];
    parts.push(match node.queue {
        Some(0) => "nobody before you".to_owned(),
        Some(ahead) => format!("{ahead} before you"),
        None => "queue unknown".to_owned(),
    });
    parts.push(known_speed(node.decode_tokens_per_sec).map_or_else(|| "speed unknown".to_owned(), words::speed));
    parts.join(", ")
}

fn best<'a, 'n: 'a>(candidates: impl Iterator<Item = &'a Candidate<'n>>) -> Option<&'a Candidate<'n>> {
    // `min_by` keeps the first of equals: the user's own order decides.
    candidates.min_by(|a, b| order(a, b))
}

fn order(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    let sure = |candidate: &Candidate<'_>| (Reverse(candidate.node.has_model), Reverse(candidate.node.reachable));
    sure(a).cmp(&sure(b)).then_with(|| a.finish.total_cmp(&b.finish))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Running;

    fn node(id: &str, reachable: Option<bool>, has_model: bool, queue: Option<usize>, speed: f64) -> NodeOption {
        NodeOption {
            id: id.into(),
            name: id.into(),
            reachable,
            has_model,
            queue,
            decode_tokens_per_sec: Some(speed),
            ..NodeOption::default()
        }
    }

    fn best_id(demand: &Demand, nodes: &[NodeOption]) -> Option<String> {
        let policy = Policy::default();
        let candidates: Vec<_> = nodes.iter().map(|node| Candidate::of(&policy, demand, node)).collect();
        best_at_all(&candidates).map(|candidate| candidate.node.id.clone())
    }

    #[test]
    fn who_has_the_model_and_answers_comes_first_and_then_who_is_done_first() {
        let mut nodes = vec![
            node("gone", Some(false), true, Some(0), 99.0),
            node("other-model", Some(true), false, Some(0), 99.0),
            // 2 s to read and 10 s to write, three times.
            node("busy", Some(true), true, Some(2), 50.0),
            node("odd", Some(true), true, Some(0), f64::NAN),
            node("slow", Some(true), true, Some(0), 5.0),
            node("fast", Some(true), true, Some(0), 50.0),
            node("unsure", Some(true), true, None, 50.0),
            node("not-asked", None, true, Some(0), 99.0),
        ];
        let mut order = Vec::new();
        while let Some(best) = best_id(&Demand::default(), &nodes) {
            nodes.retain(|node| node.id != best);
            order.push(best);
        }
        assert_eq!(order, ["fast", "unsure", "odd", "busy", "slow", "not-asked", "other-model"]);
    }

    #[test]
    fn a_long_prompt_goes_to_who_has_read_it_and_a_long_answer_to_who_writes_fast() {
        let mut reader = node("reader", Some(true), true, Some(0), 20.0);
        reader.prefill_tokens_per_sec = Some(4000.0);
        let mut writer = node("writer", Some(true), true, Some(0), 60.0);
        writer.prefill_tokens_per_sec = Some(300.0);
        let holder = NodeOption { prefix_tokens: Some(15_900), ..node("holder", Some(true), true, Some(0), 30.0) };
        let asks =
            |prompt, answer| Demand { prompt_tokens: Some(prompt), answer_tokens: Some(answer), ..Demand::default() };
        let nodes = [reader, writer];
        assert_eq!(best_id(&asks(16_000, 200), &nodes).as_deref(), Some("reader"));
        assert_eq!(best_id(&asks(500, 2000), &nodes).as_deref(), Some("writer"));
        assert_eq!(best_id(&asks(16_000, 200), &[nodes[0].clone(), holder]).as_deref(), Some("holder"));
        let cold = NodeOption { warm: Some(false), ..nodes[1].clone() };
        assert_eq!(best_id(&asks(500, 100), &[cold, nodes[0].clone()]).as_deref(), Some("reader"));
    }

    #[test]
    fn garbage_is_ranked_too() {
        let demand = Demand { prompt_tokens: Some(usize::MAX), ..Demand::default() };
        let mut odd = node("odd", Some(true), true, Some(usize::MAX), f64::INFINITY);
        odd.prefill_tokens_per_sec = Some(-1.0);
        let candidate = Candidate::of(&Policy::default(), &demand, &odd);
        assert!(!candidate.finish.is_nan());
        assert!(!candidate.describe().contains("NaN"));
    }

    #[test]
    fn a_running_answer_moves_only_to_who_can_go_on() {
        let bar = |continuation| {
            let node = NodeOption { continuation, ..node("studio", Some(true), true, Some(0), 50.0) };
            let demand = Demand { running: Some(Running::at(Place::Here, 70)), ..Demand::default() };
            Candidate::of(&Policy::default(), &demand, &node).bar
        };
        assert_eq!(bar(Some(Continuation::Prefix)), None);
        assert_eq!(bar(Some(Continuation::None)), Some(Bar::CannotGoOn));
        assert_eq!(bar(None), Some(Bar::MayNotGoOn));
    }
}
