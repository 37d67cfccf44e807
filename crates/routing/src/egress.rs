//! Whether a request may go to a node at all: the one door out of this machine.

use crate::{Demand, NodeOption, OffloadMode, Place, Policy, Reason, Trust};

/// Leave for one request to go to one node. Only [`may_leave`] makes it, and whatever sends to a node takes it by value:
/// a path that doesn't ask doesn't compile.
///
/// ```compile_fail,E0451
/// let forged = routing::EgressPass { node_id: "studio".to_owned() };
/// ```
///
/// It isn't copied either, so that each request asks anew:
///
/// ```compile_fail,E0599
/// fn twice(pass: &routing::EgressPass) -> routing::EgressPass {
///     pass.clone()
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct EgressPass {
    node_id: String,
}

impl EgressPass {
    /// The node that the request may go to, and no other.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }
}

/// Why a request may not go to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The conversation is marked to stay.
    ChatStays,
    /// The model is marked to stay.
    ModelStays,
    /// The offload switch is on Local only.
    OnlyHere,
    /// The user chose this machine, or another node, for this answer.
    ChosenElsewhere,
    /// The node is trusted less than this request wants.
    Trust {
        /// What is known of the node; nothing known counts as rented.
        of_node: Trust,
        /// The least that is wanted.
        least: Trust,
    },
}

impl Refusal {
    /// The same as a decision's reason.
    pub const fn reason(self) -> Reason {
        match self {
            Self::ChatStays => Reason::StaysLocal,
            Self::ModelStays => Reason::ModelStays,
            Self::OnlyHere => Reason::OnlyHere,
            Self::ChosenElsewhere => Reason::Chosen,
            Self::Trust { .. } => Reason::Trust,
        }
    }

    /// For people, without a capital and a final dot: "this chat stays here".
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::ChatStays => "this chat stays here",
            Self::ModelStays => "this model stays here",
            Self::OnlyHere => "offload is set to Local only",
            Self::ChosenElsewhere => "you chose another place",
            Self::Trust { least: Trust::Own, .. } => "this chat goes to your own nodes only",
            Self::Trust { .. } => "this chat goes to your own and your team's nodes only",
        }
    }
}

/// Whether what `demand` asks may be sent to `node`. What is judged is leave alone: whether the node can do it is
/// [`crate::decide()`]'s question, which never names a node without this leave.
///
/// # Errors
/// The first rule that forbids it.
pub fn may_leave(policy: &Policy, demand: &Demand, node: &NodeOption) -> Result<EgressPass, Refusal> {
    let of_node = node.trust.unwrap_or(Trust::Rented);
    let chose_elsewhere = match &demand.place {
        None => false,
        Some(Place::Here) => true,
        Some(Place::Node(id)) => *id != node.id,
    };
    if demand.stays_local {
        Err(Refusal::ChatStays)
    } else if demand.model_stays_local {
        Err(Refusal::ModelStays)
    } else if policy.mode == OffloadMode::LocalOnly {
        Err(Refusal::OnlyHere)
    } else if of_node < demand.least_trust {
        Err(Refusal::Trust { of_node, least: demand.least_trust })
    } else if chose_elsewhere {
        Err(Refusal::ChosenElsewhere)
    } else {
        Ok(EgressPass { node_id: node.id.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(trust: Option<Trust>) -> NodeOption {
        NodeOption { id: "studio".into(), trust, ..NodeOption::default() }
    }

    #[test]
    fn a_pass_names_its_node() {
        let pass = may_leave(&Policy::default(), &Demand::default(), &node(None)).unwrap();
        assert_eq!(pass.node_id(), "studio");
    }

    #[test]
    fn every_rule_closes_the_door_alone() {
        let refusal = |policy: &Policy, demand: &Demand| may_leave(policy, demand, &node(Some(Trust::Team))).err();
        let auto = Policy::default();
        let any = Demand::default();
        assert_eq!(refusal(&auto, &any), None);
        assert_eq!(refusal(&auto, &Demand { stays_local: true, ..any.clone() }), Some(Refusal::ChatStays));
        assert_eq!(refusal(&auto, &Demand { model_stays_local: true, ..any.clone() }), Some(Refusal::ModelStays));
        let local = Policy { mode: OffloadMode::LocalOnly, ..Policy::default() };
        assert_eq!(refusal(&local, &any), Some(Refusal::OnlyHere));
        let chosen = |place| Demand { place: Some(place), ..Demand::default() };
        assert_eq!(refusal(&auto, &chosen(Place::Here)), Some(Refusal::ChosenElsewhere));
        assert_eq!(refusal(&auto, &chosen(Place::Node("mini".into()))), Some(Refusal::ChosenElsewhere));
        assert_eq!(refusal(&auto, &chosen(Place::Node("studio".into()))), None);
        let own = Demand { least_trust: Trust::Own, ..Demand::default() };
        assert_eq!(refusal(&auto, &own), Some(Refusal::Trust { of_node: Trust::Team, least: Trust::Own }));
        assert_eq!(refusal(&auto, &Demand { least_trust: Trust::Team, ..Demand::default() }), None);
    }

    #[test]
    fn a_node_that_nobody_vouches_for_is_a_strangers() {
        let team = Demand { least_trust: Trust::Team, ..Demand::default() };
        assert!(may_leave(&Policy::default(), &team, &node(None)).is_err());
    }
}
