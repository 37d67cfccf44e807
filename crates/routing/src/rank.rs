//! Which node is asked first.

use std::cmp::{Ordering, Reverse};

use crate::{NodeOption, words};

/// The best of the nodes that answered last and have the model.
pub(crate) fn best_ready(nodes: &[NodeOption]) -> Option<&NodeOption> {
    best(nodes.iter().filter(|node| node.reachable == Some(true) && node.has_model))
}

/// The best of the nodes that have the model and aren't known to be gone: better than refusing.
pub(crate) fn best_with_model(nodes: &[NodeOption]) -> Option<&NodeOption> {
    best(nodes.iter().filter(|node| node.reachable != Some(false) && node.has_model))
}

/// The best of the nodes that aren't known to be gone, for when the user wants a node. One that doesn't list the model
/// comes last: many servers have one model and answer to any name.
pub(crate) fn best_at_all(nodes: &[NodeOption]) -> Option<&NodeOption> {
    best(nodes.iter().filter(|node| node.reachable != Some(false)))
}

/// The speed of a node, where it is a number that can be compared.
pub(crate) fn known_speed(tokens_per_sec: Option<f64>) -> Option<f64> {
    tokens_per_sec.filter(|speed| speed.is_finite() && *speed >= 0.0)
}

/// What is known of a node, for the list of alternatives.
pub(crate) fn describe(node: &NodeOption) -> String {
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

fn best<'a>(nodes: impl Iterator<Item = &'a NodeOption>) -> Option<&'a NodeOption> {
    // `min_by` keeps the first of equals: the user's own order decides.
    nodes.min_by(|a, b| order(a).cmp(&order(b)).then_with(|| by_speed(a, b)))
}

fn order(node: &NodeOption) -> impl Ord {
    // An unknown queue is worse than an empty one, and not as bad as one that is known to be there.
    let queue = match node.queue {
        Some(0) => 0,
        None => 1,
        Some(ahead) => ahead.saturating_add(1),
    };
    (Reverse(node.has_model), Reverse(node.reachable), queue)
}

/// Faster first, unknown last.
fn by_speed(a: &NodeOption, b: &NodeOption) -> Ordering {
    let speed = |node: &NodeOption| known_speed(node.decode_tokens_per_sec).unwrap_or(-1.0);
    speed(b).total_cmp(&speed(a))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_model_comes_before_the_queue_and_the_queue_before_the_speed() {
        let mut nodes = vec![
            node("gone", Some(false), true, Some(0), 99.0),
            node("other-model", Some(true), false, Some(0), 99.0),
            node("busy", Some(true), true, Some(2), 99.0),
            node("unsure", Some(true), true, None, 99.0),
            node("odd", Some(true), true, Some(0), f64::NAN),
            node("slow", Some(true), true, Some(0), 5.0),
            node("fast", Some(true), true, Some(0), 50.0),
            node("not-asked", None, true, Some(0), 99.0),
        ];
        let mut order = Vec::new();
        while let Some(best) = best_at_all(&nodes) {
            order.push(best.id.clone());
            nodes.retain(|node| node.id != *order.last().unwrap());
        }
        assert_eq!(order, ["fast", "slow", "odd", "unsure", "busy", "not-asked", "other-model"]);
    }
}
