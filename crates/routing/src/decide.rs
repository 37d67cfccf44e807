//! The decision: who may answer is settled first, then who can, then who does it best.

use crate::here::{Here, Outcome};
use crate::{
    Alternative, Decision, Demand, NodeOption, OffloadMode, Outlook, Place, Policy, Reason, Target, rank, words,
};

/// Decides where an answer is made.
///
/// - A conversation that stays, and [`OffloadMode::LocalOnly`], never give a node, whatever place is chosen.
/// - Nothing is loaded here over the budget ([`crate::fit()`]), whatever place is chosen.
/// - Within these two, a chosen place wins over the policy.
/// - [`OffloadMode::Auto`] stays here where the model fits, if need be with a smaller context that still holds the
///   prompt and an answer; it goes to a node that is ready and has the model where it doesn't fit, where the memory is
///   unknown, or where a reading is over its limit. With no such node it stays where it fits and says which reading is
///   bad, and refuses where it doesn't fit.
/// - [`OffloadMode::Remote`] takes the best node that isn't known to be gone, and refuses where there is none.
pub fn decide(policy: &Policy, demand: &Demand, outlook: &Outlook, nodes: &[NodeOption]) -> Decision {
    let case = Case { demand, nodes, here: Here::look(policy, demand, outlook) };
    if demand.stays_local {
        return case.only_here(Reason::StaysLocal, "this chat stays here");
    }
    if policy.mode == OffloadMode::LocalOnly {
        return case.only_here(Reason::OnlyHere, "offload is set to Local only");
    }
    match (&demand.place, policy.mode) {
        (Some(Place::Here), _) => case.only_here(Reason::Chosen, "you chose here"),
        (Some(Place::Node(id)), _) => case.chosen_node(id),
        (None, OffloadMode::Remote) => case.any_node(),
        (None, _) => case.best_place(),
    }
}

struct Case<'a> {
    demand: &'a Demand,
    nodes: &'a [NodeOption],
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
                let elsewhere = rank::best_ready(self.nodes).map(|node| match reason {
                    Reason::StaysLocal => format!("Could run on {} if this chat were allowed to leave", node.name),
                    Reason::OnlyHere => format!("Could run on {} with offload set to Auto", node.name),
                    _ => format!("Could run on {}", node.name),
                });
                let counterfactual = match (self.fits_if(), elsewhere) {
                    (Some(fits), Some(elsewhere)) => Some(format!("{fits}. {elsewhere}")),
                    (fits, elsewhere) => fits.or(elsewhere),
                };
                let sentence = format!("{}; {rule}", words::capitalized(&cannot_here(*why_not, why)));
                self.refuse(*why_not, sentence, counterfactual)
            }
        }
    }

    fn chosen_node(&self, id: &str) -> Decision {
        match self.nodes.iter().find(|node| node.id == id) {
            None => {
                self.refuse(Reason::NoNode, "The chosen node isn't set up any more".to_owned(), self.could_run_here())
            }
            Some(node) if node.reachable == Some(false) => {
                self.refuse(Reason::NodeUnreachable, format!("{} doesn't answer", node.name), self.could_run_here())
            }
            Some(node) => self.run_on(node, Reason::Chosen, format!("as you chose{}", doubts(node)), None),
        }
    }

    fn any_node(&self) -> Decision {
        match (rank::best_at_all(self.nodes), self.nodes) {
            (Some(node), _) => {
                self.run_on(node, Reason::Chosen, format!("offload is set to Remote{}", doubts(node)), None)
            }
            (None, []) => self.refuse(Reason::NoNode, "No node is set up".to_owned(), self.could_run_here()),
            (None, [node]) => {
                self.refuse(Reason::NodeUnreachable, format!("{} doesn't answer", node.name), self.could_run_here())
            }
            (None, nodes) => {
                let sentence = format!("None of the {} nodes answers", nodes.len());
                self.refuse(Reason::NodeUnreachable, sentence, self.could_run_here())
            }
        }
    }

    fn best_place(&self) -> Decision {
        match &self.here.outcome {
            Outcome::Runs { spare: None, context_len, .. } => match rank::best_ready(self.nodes) {
                Some(node) => {
                    let sentence = "memory unknown here, so it may not fit".to_owned();
                    self.run_on(
                        node,
                        Reason::Memory,
                        sentence,
                        Some("Would stay here if free memory could be read".into()),
                    )
                }
                None => {
                    let sentence = format!("{}; {}", self.here.describe(), self.no_node());
                    self.run_here(*context_len, Reason::Memory, sentence, None)
                }
            },
            Outcome::Runs { context_len, is_smaller, .. } => match self.here.strains.first() {
                None => {
                    let reason = if *is_smaller { Reason::SmallerContext } else { Reason::Fits };
                    let sentence = format!("{}{}", self.here.describe(), self.unknown_strain());
                    self.run_here(*context_len, reason, sentence, self.larger_context())
                }
                Some(strain) => match rank::best_ready(self.nodes).filter(|node| self.is_better_than_here(node)) {
                    Some(node) => {
                        let strain_here = self.here.describe_strain().unwrap_or_default();
                        self.run_on(node, strain.reason, format!("here {strain_here}"), Some(self.stays_with()))
                    }
                    None => {
                        let (how, strain_here) =
                            (self.here.describe(), self.here.describe_strain().unwrap_or_default());
                        let sentence = format!("{how}, but this machine {strain_here}; {}", self.no_node());
                        self.run_here(*context_len, strain.reason, sentence, None)
                    }
                },
            },
            Outcome::Cannot { reason, why, remedy } => {
                // A node that wasn't asked yet is better than none.
                match rank::best_ready(self.nodes).or_else(|| rank::best_with_model(self.nodes)) {
                    Some(node) => {
                        let counterfactual = remedy.as_ref().map(|remedy| format!("Would stay here {remedy}"));
                        self.run_on(
                            node,
                            *reason,
                            format!("{}{}", would_be_here(*reason, why), doubts(node)),
                            counterfactual,
                        )
                    }
                    None => {
                        let why = words::capitalized(&cannot_here(*reason, why));
                        self.refuse(*reason, format!("{why}; {}", self.no_node()), self.fits_if())
                    }
                }
            }
        }
    }

    /// Only a model that is slow here, and nothing else, makes the node's speed matter.
    fn is_better_than_here(&self, node: &NodeOption) -> bool {
        let is_only_slow = self.here.strains.iter().all(|strain| strain.reason == Reason::TooSlow);
        let speeds = rank::known_speed(node.decode_tokens_per_sec).zip(self.here.speed);
        !(is_only_slow && speeds.is_some_and(|(there, here)| there <= here))
    }

    fn no_node(&self) -> &'static str {
        if self.nodes.is_empty() {
            "no node is set up"
        } else if self.nodes.iter().all(|node| node.reachable == Some(false)) {
            "no node answers"
        } else if self.nodes.iter().any(|node| node.reachable == Some(true) && node.has_model) {
            "no node is faster"
        } else {
            "no node is ready with the model"
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

    fn run_on(&self, node: &NodeOption, reason: Reason, sentence: String, counterfactual: Option<String>) -> Decision {
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
        let here = (!matches!(target, Target::Here { .. }))
            .then(|| Alternative { place: "Here".to_owned(), outcome: format!("{}{strain}", self.here.describe()) });
        let is_target = |node: &&NodeOption| matches!(target, Target::Node { id } if *id == node.id);
        let leaves = if self.demand.stays_local { "not asked: this chat stays here; " } else { "" };
        let nodes = self
            .nodes
            .iter()
            .filter(|node| !is_target(node))
            .map(|node| Alternative { place: node.name.clone(), outcome: format!("{leaves}{}", rank::describe(node)) });
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
