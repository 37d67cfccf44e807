//! The decision: who may answer is settled first, then who can, then who does it best.

use crate::here::{Here, Outcome};
use crate::rank::{self, Bar, Candidate};
use crate::{
    Alternative, Decision, Demand, NodeOption, OffloadMode, Outlook, Place, Policy, Reason, Refusal, Target, words,
};

/// A node that holds so many more tokens of the conversation than this machine keeps it, where it isn't known how long
/// reading them here would take: some seconds on most machines.
const WORTH_STAYING: usize = 1024;

/// Decides where an answer is made, or where one that is being written goes on.
///
/// - A node that [`crate::may_leave`] refuses is never named, and nothing is loaded here over the budget
///   ([`crate::fit()`]), whatever place is chosen.
/// - A running answer moves only to a node that can go on with it, and never to a place that failed in it.
/// - Within these, a chosen place wins over the policy.
/// - [`OffloadMode::Auto`] stays here where the model fits, if need be with a smaller context that still holds the
///   prompt and an answer; it goes to a node that is ready and has the model where it doesn't fit, where the memory is
///   unknown, where a reading is over its limit or will be, or where the node holds the conversation and moving it
///   here would take longer. With no such node it stays where it fits and says which reading is bad, and refuses where
///   it doesn't fit.
/// - [`OffloadMode::Remote`] takes the best node that isn't known to be gone, and refuses where there is none.
/// - Of several nodes, the one is taken that is forecast to be done first.
pub fn decide(policy: &Policy, demand: &Demand, outlook: &Outlook, nodes: &[NodeOption]) -> Decision {
    let candidates = nodes.iter().map(|node| Candidate::of(policy, demand, node)).collect();
    let case = Case { policy, demand, candidates, here: Here::look(policy, demand, outlook) };
    let only_here = [Refusal::ChatStays, Refusal::ModelStays, Refusal::OnlyHere].into_iter().find(|rule| match rule {
        Refusal::ChatStays => demand.stays_local,
        Refusal::ModelStays => demand.model_stays_local,
        _ => policy.mode == OffloadMode::LocalOnly,
    });
    if let Some(rule) = only_here {
        return case.only_here(rule.reason(), rule.sentence());
    }
    match (&demand.place, policy.mode) {
        (Some(Place::Here), _) => case.only_here(Reason::Chosen, "you chose here"),
        (Some(Place::Node(id)), _) => case.chosen_node(id),
        (None, OffloadMode::Remote) => case.any_node(),
        (None, _) => case.best_place(),
    }
}

struct Case<'a> {
    policy: &'a Policy,
    demand: &'a Demand,
    candidates: Vec<Candidate<'a>>,
    here: Here,
}

impl Case<'_> {
    /// Here or nowhere, because of `rule`.
    fn only_here(&self, reason: Reason, rule: &str) -> Decision {
        match &self.here.outcome {
            Outcome::Runs { context_len, .. } => {
                let strain = self.here.describe_strain().map(|strain| format!(", but this machine {strain}"));
                let sentence = format!("{}{}; {rule}", self.here.describe(), strain.unwrap_or_default());
                self.run_here(*context_len, reason, sentence, self.larger_context())
            }
            Outcome::Cannot { reason: why_not, why, .. } => {
                let counterfactual = match (self.fits_if(), self.elsewhere(reason)) {
                    (Some(fits), Some(elsewhere)) => Some(format!("{fits}. {elsewhere}")),
                    (fits, elsewhere) => fits.or(elsewhere),
                };
                let sentence = format!("{}; {rule}", words::capitalized(&cannot_here(*why_not, why)));
                self.refuse(*why_not, sentence, counterfactual)
            }
        }
    }

    /// "Could run on studio if this chat were allowed to leave": who could do it if one rule were lifted.
    fn elsewhere(&self, rule: Reason) -> Option<String> {
        let (mut policy, mut demand) = (self.policy.clone(), self.demand.clone());
        demand.place = None;
        let condition = match rule {
            Reason::StaysLocal => {
                demand.stays_local = false;
                " if this chat were allowed to leave"
            }
            Reason::ModelStays => {
                demand.model_stays_local = false;
                " if this model were allowed to leave"
            }
            Reason::OnlyHere => {
                policy.mode = OffloadMode::Auto;
                " with offload set to Auto"
            }
            _ => "",
        };
        let candidates: Vec<_> =
            self.candidates.iter().map(|candidate| Candidate::of(&policy, &demand, candidate.node)).collect();
        rank::best_ready(&candidates).map(|best| format!("Could run on {}{condition}", best.node.name))
    }

    fn chosen_node(&self, id: &str) -> Decision {
        let Some(candidate) = self.candidates.iter().find(|candidate| candidate.node.id == id) else {
            let sentence = "The chosen node isn't set up any more".to_owned();
            return self.refuse(Reason::NoNode, sentence, self.could_run_here());
        };
        match candidate {
            Candidate { bar: Some(bar), node, .. } => {
                self.refuse(bar.reason(), format!("{}: {}", node.name, bar.sentence()), self.could_run_here())
            }
            Candidate { node, .. } if node.reachable == Some(false) => {
                self.refuse(Reason::NodeUnreachable, format!("{} doesn't answer", node.name), self.could_run_here())
            }
            Candidate { node, .. } => {
                self.run_on(candidate, Reason::Chosen, format!("as you chose{}", doubts(node)), None)
            }
        }
    }

    fn any_node(&self) -> Decision {
        if let Some(best) = rank::best_at_all(&self.candidates) {
            let sentence = format!("offload is set to Remote{}", doubts(best.node));
            return self.run_on(best, Reason::Chosen, sentence, None);
        }
        let answering: Vec<_> =
            self.candidates.iter().filter(|candidate| candidate.node.reachable != Some(false)).collect();
        let (reason, sentence) = match (answering.as_slice(), self.candidates.as_slice()) {
            (_, []) => (Reason::NoNode, "No node is set up".to_owned()),
            ([], [gone]) => (Reason::NodeUnreachable, format!("{} doesn't answer", gone.node.name)),
            ([], all) => (Reason::NodeUnreachable, format!("None of the {} nodes answers", all.len())),
            (_, [..]) => (self.bar().map_or(Reason::NodeUnreachable, Bar::reason), words::capitalized(&self.no_node())),
        };
        self.refuse(reason, sentence, self.could_run_here())
    }

    fn best_place(&self) -> Decision {
        match &self.here.outcome {
            Outcome::Runs { spare: None, context_len, .. } => match rank::best_ready(&self.candidates) {
                Some(node) => {
                    let sentence = "memory unknown here, so it may not fit".to_owned();
                    let counterfactual = Some("Would stay here if free memory could be read".to_owned());
                    self.run_on(node, Reason::Memory, sentence, counterfactual)
                }
                None => {
                    let sentence = format!("{}; {}", self.here.describe(), self.no_node());
                    self.run_here(*context_len, Reason::Memory, sentence, None)
                }
            },
            Outcome::Runs { context_len, is_smaller, .. } => match (self.here.strains.first(), self.holder()) {
                (None, Some(holder)) => self.stay_with(holder),
                (None, None) => {
                    let reason = if *is_smaller { Reason::SmallerContext } else { Reason::Fits };
                    let sentence = format!("{}{}", self.here.describe(), self.unknown_strain());
                    self.run_here(*context_len, reason, sentence, self.larger_context())
                }
                (Some(strain), _) => {
                    let strain_here = self.here.describe_strain().unwrap_or_default();
                    match rank::best_ready(&self.candidates).filter(|node| self.is_better_than_here(node)) {
                        Some(node) => {
                            self.run_on(node, strain.reason, format!("here {strain_here}"), Some(self.stays_with()))
                        }
                        None => {
                            let how = self.here.describe();
                            let sentence = format!("{how}, but this machine {strain_here}; {}", self.no_node());
                            self.run_here(*context_len, strain.reason, sentence, None)
                        }
                    }
                }
            },
            Outcome::Cannot { reason, why, remedy } => {
                // A node that wasn't asked yet is better than none.
                match rank::best_ready(&self.candidates).or_else(|| rank::best_with_model(&self.candidates)) {
                    Some(best) => {
                        let counterfactual = remedy.as_ref().map(|remedy| format!("Would stay here {remedy}"));
                        let sentence = format!("{}{}", would_be_here(*reason, why), doubts(best.node));
                        self.run_on(best, *reason, sentence, counterfactual)
                    }
                    None => {
                        let why = words::capitalized(&cannot_here(*reason, why));
                        self.refuse(*reason, format!("{why}; {}", self.no_node()), self.fits_if())
                    }
                }
            }
        }
    }

    /// The node that holds this conversation, where it is worth staying there.
    fn holder(&self) -> Option<&Candidate<'_>> {
        let holders = self.candidates.iter().filter(|candidate| candidate.is_ready());
        // `max_by_key` keeps the last of equals; the user's own order wants the first.
        let holder = holders.rev().max_by_key(|candidate| candidate.cached)?;
        let there = rank::known_speed(holder.node.decode_tokens_per_sec);
        let is_worth_it = match (self.here.speed, there) {
            (Some(_), Some(_)) => holder.finish < self.here.finish,
            _ => holder.cached.saturating_sub(self.here.cached) >= WORTH_STAYING,
        };
        (holder.cached > self.here.cached && is_worth_it).then_some(holder)
    }

    fn stay_with(&self, holder: &Candidate<'_>) -> Decision {
        let sentence = format!("it holds {} of this chat already", words::tokens(holder.cached));
        let counterfactual = match (self.here.speed, rank::known_speed(holder.node.decode_tokens_per_sec)) {
            (Some(_), Some(_)) => format!(
                "Would be done in {} here, {} there",
                words::about(self.here.finish),
                words::about(holder.finish)
            ),
            _ if self.demand.running.is_some() => format!("Would go on here if {} failed", holder.node.name),
            _ => "Would run here as a new chat".to_owned(),
        };
        self.run_on(holder, Reason::Cached, sentence, Some(counterfactual))
    }

    /// Only a model that is slow here, and nothing else, makes the node's speed matter.
    fn is_better_than_here(&self, candidate: &Candidate<'_>) -> bool {
        let is_only_slow = self.here.strains.iter().all(|strain| strain.reason == Reason::TooSlow);
        let are_known = self.here.speed.is_some() && rank::known_speed(candidate.node.decode_tokens_per_sec).is_some();
        !(is_only_slow && are_known && self.here.finish <= candidate.finish)
    }

    /// Why the nodes that answer aren't asked, where all of them aren't. That one of them failed says least.
    fn bar(&self) -> Option<Bar> {
        let answering = self.candidates.iter().filter(|candidate| candidate.node.reachable != Some(false));
        let bars: Vec<Bar> = answering.map(|candidate| candidate.bar).collect::<Option<_>>()?;
        bars.iter().find(|&&bar| bar != Bar::Failed).or(bars.first()).copied()
    }

    /// Why no node is taken, for after what is so here.
    fn no_node(&self) -> String {
        if self.candidates.is_empty() {
            "no node is set up".to_owned()
        } else if self.candidates.iter().all(|candidate| candidate.node.reachable == Some(false)) {
            "no node answers".to_owned()
        } else if self.candidates.iter().any(Candidate::is_ready) {
            "no node is faster".to_owned()
        } else if let Some(bar) = self.bar() {
            match bar {
                Bar::MayNot(refusal) => refusal.sentence().to_owned(),
                Bar::Failed => "every node failed in this answer".to_owned(),
                Bar::TooShort(..) => "no node has a context that is long enough".to_owned(),
                Bar::CannotGoOn | Bar::MayNotGoOn => "no node can go on with a half-written answer".to_owned(),
            }
        } else {
            "no node is ready with the model".to_owned()
        }
    }

    fn unknown_strain(&self) -> String {
        match self.here.unknown.as_slice() {
            [] => String::new(),
            names => format!("; {} unknown", names.join(", ").to_lowercase()),
        }
    }

    /// "Fits if 6.2 GB were free".
    fn fits_if(&self) -> Option<String> {
        match &self.here.outcome {
            Outcome::Cannot { remedy: Some(remedy), .. } => Some(format!("Fits {remedy}")),
            _ => None,
        }
    }

    /// "Would stay here with swap in up to 4.0 MB/s".
    fn stays_with(&self) -> String {
        let remedies: Vec<&str> = self.here.strains.iter().map(|strain| strain.remedy.as_str()).collect();
        format!("Would stay here {}", remedies.join(" and "))
    }

    /// "Fits with context up to 16k".
    fn larger_context(&self) -> Option<String> {
        match self.here.outcome {
            Outcome::Runs { max_context: Some(tokens), .. } => {
                Some(format!("Fits with context up to {}", words::context(tokens)))
            }
            _ => None,
        }
    }

    fn could_run_here(&self) -> Option<String> {
        match self.here.outcome {
            Outcome::Runs { .. } => Some(format!("Could run here: {}", self.here.describe())),
            Outcome::Cannot { .. } => None,
        }
    }

    fn run_here(
        &self,
        context_len: usize,
        reason: Reason,
        sentence: String,
        counterfactual: Option<String>,
    ) -> Decision {
        self.decision(Target::Here { context_len }, "Here".to_owned(), reason, sentence, counterfactual)
    }

    fn run_on(
        &self,
        candidate: &Candidate<'_>,
        reason: Reason,
        sentence: String,
        counterfactual: Option<String>,
    ) -> Decision {
        let node = candidate.node;
        let place = format!("On {}", node.name);
        self.decision(Target::Node { id: node.id.clone() }, place, reason, sentence, counterfactual)
    }

    fn refuse(&self, reason: Reason, sentence: String, counterfactual: Option<String>) -> Decision {
        self.decision(Target::Refuse, "Nowhere".to_owned(), reason, sentence, counterfactual)
    }

    fn decision(
        &self,
        target: Target,
        place: String,
        reason: Reason,
        sentence: String,
        counterfactual: Option<String>,
    ) -> Decision {
        let alternatives = self.alternatives(&target);
        Decision { target, place, reason, sentence, counterfactual, readings: self.here.readings.clone(), alternatives }
    }

    fn alternatives(&self, target: &Target) -> Vec<Alternative> {
        let strain =
            self.here.describe_strain().map(|strain| format!(", but this machine {strain}")).unwrap_or_default();
        let finish = self.here.speed.map(|_| format!(", done in {}", words::about(self.here.finish)));
        let finish = finish.filter(|_| matches!(self.here.outcome, Outcome::Runs { .. })).unwrap_or_default();
        let here = (!matches!(target, Target::Here { .. })).then(|| Alternative {
            place: "Here".to_owned(),
            outcome: format!("{}{finish}{strain}", self.here.describe()),
        });
        let is_target = |candidate: &&Candidate<'_>| matches!(target, Target::Node { id } if *id == candidate.node.id);
        let nodes = self
            .candidates
            .iter()
            .filter(|candidate| !is_target(candidate))
            .map(|candidate| Alternative { place: candidate.node.name.clone(), outcome: candidate.describe() });
        here.into_iter().chain(nodes).collect()
    }
}

/// What is not known of a node that is asked all the same.
fn doubts(node: &NodeOption) -> &'static str {
    match (node.reachable, node.has_model) {
        (Some(_), true) => "",
        (Some(_), false) => "; it doesn't list the model",
        (None, true) => "; it wasn't asked yet",
        (None, false) => "; it wasn't asked yet and doesn't list the model",
    }
}

/// Why it can't run here, as the start of a refusal.
fn cannot_here(reason: Reason, why: &str) -> String {
    match reason {
        Reason::Memory => format!("doesn't fit here: {why}"),
        Reason::TooLong => why.to_owned(),
        _ => format!("this machine {why}"),
    }
}

/// Why it goes to a node.
fn would_be_here(reason: Reason, why: &str) -> String {
    match reason {
        Reason::Memory => format!("here would swap: {why}"),
        Reason::TooLong => why.to_owned(),
        _ => format!("this machine {why}"),
    }
}
