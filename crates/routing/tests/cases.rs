//! The table of cases: each line of `cases.txt` is a decision.

use routing::Target;
use routing::case::Case;

#[test]
fn every_case_is_decided_as_the_table_says() {
    let mut cases = 0;
    let mut wrong = Vec::new();
    for (index, line) in include_str!("cases.txt").lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        cases += 1;
        let (input, expected) = line.split_once(" => ").unwrap_or_else(|| panic!("line {}: no =>", index + 1));
        if let Err(found) = check(input, expected) {
            wrong.push(format!("line {}: {input}\n  expected {expected}\n  found    {found}", index + 1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases > 130, "{cases}");
}

/// Decides `input` and compares what `expected` names of the decision.
fn check(input: &str, expected: &str) -> Result<(), String> {
    let decision = Case::parse(input).map_err(|error| error.to_string())?.decide();
    let target = match &decision.target {
        Target::Here { context_len } => format!("here {context_len}"),
        Target::Node { id } if id == "studio" => "node".to_owned(),
        Target::Node { id } => format!("node {id}"),
        Target::Refuse => "refuse".to_owned(),
    };
    let found = [
        format!("{target}: {}", decision.reason.as_str()),
        decision.sentence.clone(),
        decision.counterfactual.clone().unwrap_or_else(|| "-".to_owned()),
    ];
    let is_right = expected.split(" | ").zip(&found).all(|(expected, found)| expected == found);
    if is_right { Ok(()) } else { Err(found.join(" | ")) }
}
