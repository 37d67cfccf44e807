//! What holds in every scenario.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chat::{ChatEvent, FinishReason};
use handoff::{Ended, HandoffEvent, Ledger, Signal};
use routing::{Continuation, OffloadMode, Place};

use crate::place::{Broken, Fault, Spec, next_character};
use crate::world::{Said, Scenario};

/// Silence that is long for a place of that pace, and the time to ask.
const NOTICED: Duration = Duration::from_millis(2_000 + 400 + 100);

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) scenario: Scenario,
    pub(crate) events: Vec<HandoffEvent<Broken>>,
    /// When each of them was read.
    pub(crate) times: Vec<Duration>,
    /// What the runner gives at the end.
    pub(crate) kept: Option<Ledger>,
    /// What the reader kept.
    pub(crate) read: Ledger,
    /// The reader went away.
    pub(crate) stopped: bool,
    pub(crate) opened: Vec<Place>,
    /// Backends that still run at the end.
    pub(crate) left: usize,
    pub(crate) most_running: usize,
}

impl Outcome {
    pub(crate) fn check(&self) {
        self.ends_once();
        self.ledgers_are_exact();
        self.every_part_follows_from_the_one_before();
        self.what_stays_stays();
        self.every_decision_has_a_reason();
        self.a_healthy_place_is_found();
        self.whoever_only_pauses_is_not_left();
        self.whoever_is_gone_is_soon_noticed();
        assert!(self.most_running <= 2, "{} backends at once", self.most_running);
        assert_eq!(self.left, 0, "backends still run");
    }

    fn finish(&self) -> Option<chat::Finish> {
        self.events.iter().find_map(|event| match event {
            HandoffEvent::Chat(ChatEvent::Finished(finish)) => Some(*finish),
            _ => None,
        })
    }

    fn ends_once(&self) {
        let ends = |event: &&HandoffEvent<Broken>| {
            matches!(event, HandoffEvent::Chat(ChatEvent::Finished(_)) | HandoffEvent::Failed(_))
        };
        let count = self.events.iter().filter(ends).count();
        if self.stopped {
            assert!(count <= 1);
        } else {
            assert_eq!(count, 1, "an answer has one end");
            assert!(self.events.last().as_ref().is_some_and(ends), "and nothing after it");
        }
    }

    fn ledgers_are_exact(&self) {
        let (mut text, mut thinking) = (String::new(), String::new());
        for event in &self.events {
            match event {
                HandoffEvent::Chat(ChatEvent::Text(piece)) => text.push_str(piece),
                HandoffEvent::Chat(ChatEvent::Thinking(piece)) => thinking.push_str(piece),
                _ => {}
            }
        }
        assert_eq!(self.read.verify(), Ok(()));
        assert_eq!((self.read.text(), self.read.thinking()), (text.as_str(), thinking.as_str()));
        let Some(kept) = &self.kept else { return };
        assert_eq!(kept.verify(), Ok(()));
        if !self.stopped {
            assert_eq!((kept.text(), kept.thinking()), (text.as_str(), thinking.as_str()));
            assert_eq!(kept.segments().len(), self.read.segments().len());
            for (kept, read) in kept.segments().iter().zip(self.read.segments()) {
                let of = |s: &handoff::Segment| {
                    (s.place.clone(), s.continuation, s.text.clone(), s.thinking.clone(), s.tokens.clone(), s.checksum)
                };
                assert_eq!(of(kept), of(read));
            }
        }
    }

    fn spec(&self, place: &Place) -> &Spec {
        match place {
            Place::Here => self.scenario.here.as_ref().expect("it answered"),
            Place::Node(id) => self.scenario.nodes.iter().find(|node| node.name == id).expect("it answered"),
        }
    }

    /// Each segment is what its model writes after the segments before it: nothing lost, nothing doubled.
    fn every_part_follows_from_the_one_before(&self) {
        let mut whole = String::new();
        let mut weights = None;
        for segment in self.read.segments() {
            let own = self.spec(&segment.place).weights;
            let thinking = &self.read.thinking()[segment.thinking.clone()];
            let text = &self.read.text()[segment.text.clone()];
            for (index, character) in thinking.chars().chain(text.chars()).enumerate() {
                let follows = next_character(own, &whole) == Some(character);
                // A character that was drawn there and not told yet.
                let was_drawn = index == 0
                    && segment.continuation == Some(Continuation::Tokens)
                    && weights.is_some_and(|before| next_character(before, &whole) == Some(character));
                assert!(follows || was_drawn, "{character:?} after {whole:?} in {segment:?}");
                whole.push(character);
            }
            weights = Some(own);
        }
        let (Some(finish), Some(last)) = (self.finish(), self.read.segments().last()) else { return };
        let is_at_end = next_character(self.spec(&last.place).weights, &whole).is_none();
        let is_cut = finish.reason == FinishReason::Length && self.scenario.max_tokens.is_some();
        // A place that says so although there is more is believed only where the one before is gone and none goes on.
        let said_nothing = |part: &handoff::Segment| part.text.len() + part.thinking.len() == 0;
        let is_lie = !whole.is_empty()
            && self.read.segments().windows(2).any(|pair| {
                matches!(pair[0].ended, Some(Ended::Failed(_)))
                    && self.spec(&pair[1].place).fault == Fault::ReturnsNothing
                    && pair[1].text.end == self.read.text().len()
                    && said_nothing(&pair[1])
            });
        // Nor is there a way to know better where two say that there is nothing to say at all.
        let liars = self
            .read
            .segments()
            .iter()
            .filter(|part| self.spec(&part.place).fault == Fault::ReturnsNothing && said_nothing(part));
        let is_lie = is_lie || whole.is_empty() && liars.count() > 1;
        assert!(is_at_end || is_cut || is_lie, "{whole:?} isn't whole");
        // Where tokens were unknown for a while, there was nothing to count them by.
        let is_counted = self.read.segments().iter().all(|segment| {
            matches!(segment.continuation, None | Some(Continuation::Tokens)) && segment.tokens.is_some()
        });
        if let (Some(most), Some(tokens), true) = (self.scenario.max_tokens, self.read.tokens(), is_counted) {
            assert!(tokens.len() <= most, "{} tokens of {most}", tokens.len());
        }
    }

    fn what_stays_stays(&self) {
        let stays = self.scenario.stays_local || self.scenario.policy.mode == OffloadMode::LocalOnly;
        if stays {
            assert!(self.opened.iter().all(|place| *place == Place::Here), "{:?}", self.opened);
        }
    }

    fn every_decision_has_a_reason(&self) {
        let mut is_routed = false;
        for event in &self.events {
            match event {
                HandoffEvent::Routed { decision, .. } => {
                    is_routed = true;
                    assert!(!decision.sentence.is_empty() && !decision.readings.is_empty(), "{decision:?}");
                }
                HandoffEvent::Stayed(decision) => assert!(!decision.sentence.is_empty()),
                HandoffEvent::Relieved { concern, .. } => assert!(!concern.sentence.is_empty()),
                HandoffEvent::Chat(_) => assert!(is_routed, "an answer from nowhere"),
                HandoffEvent::Lost(sentence) => assert!(!sentence.is_empty()),
                HandoffEvent::Failed(_) => {}
            }
        }
    }

    /// A place that is silent for a while in mid-answer, and answers when it is asked, keeps the answer; a node where the
    /// network was disturbed may be asked anew.
    fn whoever_only_pauses_is_not_left(&self) {
        let is_disturbed = self.scenario.said.iter().any(|said| said.signal == Signal::Disturbed);
        for segment in self.read.segments().iter().filter(|segment| segment.text.len() + segment.thinking.len() > 0) {
            let pauses = matches!(self.spec(&segment.place).fault, Fault::Pauses { alive: true, .. });
            let may_be_dead = is_disturbed && segment.place != Place::Here;
            assert!(!pauses || may_be_dead || !matches!(segment.ended, Some(Ended::Failed(_))), "{segment:?}");
        }
    }

    /// One that fell silent in mid-answer and doesn't answer when it is asked is given up within seconds: it wrote a token
    /// of at most three bytes every 100 ms at the slowest, so that its longest pause was of 0.3 s.
    fn whoever_is_gone_is_soon_noticed(&self) {
        let moves = |said: &Said| matches!(said.signal, Signal::MoveTo(_) | Signal::Advice(_));
        if self.scenario.reader_ms > 0 || self.scenario.said.iter().any(moves) {
            return;
        }
        let (mut place, mut told) = (None, None);
        for (event, at) in self.events.iter().zip(&self.times) {
            match event {
                HandoffEvent::Routed { place: next, .. } => (place, told) = (next.as_ref(), None),
                HandoffEvent::Chat(ChatEvent::Text(_) | ChatEvent::Thinking(_)) => told = Some(*at),
                HandoffEvent::Lost(_) => {
                    let Some((place, told)) = place.zip(told) else { continue };
                    let is_gone = matches!(self.spec(place).fault, Fault::Stalls { alive: false, .. });
                    assert!(!is_gone || *at - told < NOTICED, "noticed after {:?}", *at - told);
                }
                _ => {}
            }
        }
    }

    /// Where nothing is wrong with the place that everything may fall back to, there is a whole answer.
    fn a_healthy_place_is_found(&self) {
        let scenario = &self.scenario;
        let here = scenario.here.as_ref().filter(|here| here.fault == Fault::None);
        let is_calm = scenario.snapshot.memory.is_some_and(|memory| memory.available.0 > 10 << 30);
        let may_fall_back = scenario.policy.mode == OffloadMode::Auto && scenario.wanted.is_none();
        if !self.stopped && here.is_some() && is_calm && (scenario.stays_local || may_fall_back) {
            let finish = self.finish();
            // Where another tokenizer, or none, leaves no way to go on with it, an answer may fail; not one that never left.
            let never_left = self.opened.iter().all(|place| *place == Place::Here);
            assert!(finish.is_some() || !never_left, "no whole answer: {:?}", self.events.last());
        }
    }
}

/// What happened in all scenarios together.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<&'static str, u64>);

impl Seen {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, outcome: &Outcome) {
        let segments = outcome.read.segments();
        for segment in segments {
            match (&segment.ended, segment.text.len() + segment.thinking.len()) {
                (Some(Ended::HandedOver), 1..) => self.count("handed over"),
                (Some(Ended::Failed(_)), 1..) => self.count("lost in the middle"),
                (Some(Ended::Failed(_)), 0) => self.count("lost before a word"),
                _ => {}
            }
            let told = outcome.read.thinking()[segment.thinking.clone()].chars().count()
                + outcome.read.text()[segment.text.clone()].chars().count();
            match (outcome.spec(&segment.place).fault, &segment.ended) {
                (Fault::Pauses { after, ms: 8_000.., alive: true }, _) if told > after => self.count("silent and kept"),
                (Fault::Stalls { alive: false, .. }, Some(Ended::Failed(_))) if told > 0 => {
                    self.count("silent and gone")
                }
                _ => {}
            }
            match segment.continuation {
                Some(Continuation::Tokens) => self.count("by tokens"),
                Some(Continuation::Text) => self.count("by text"),
                Some(Continuation::Prefix) => self.count("by prefix"),
                _ => {}
            }
        }
        for pair in segments.windows(2) {
            if pair[0].place == pair[1].place {
                self.count("came back");
                continue;
            }
            match (&pair[0].place, &pair[1].place) {
                (Place::Here, Place::Node(_)) => self.count("here to node"),
                (Place::Node(_), Place::Here) => self.count("node to here"),
                (Place::Node(_), Place::Node(_)) => self.count("node to node"),
                (Place::Here, Place::Here) => {}
            }
        }
        let moves = segments.len().saturating_sub(1);
        if moves > 1 {
            self.count("more than one move");
        }
        match (outcome.finish(), outcome.stopped) {
            (Some(_), _) if moves > 0 => self.count("whole after a move"),
            (Some(_), _) => self.count("whole"),
            (None, true) => self.count("stopped"),
            (None, false) => self.count("failed"),
        }
        if outcome.events.iter().any(|event| matches!(event, HandoffEvent::Stayed(_))) {
            self.count("stayed");
        }
    }

    /// A simulation in which something never happens proves nothing about it.
    pub(crate) fn assert_everything_happened(&self) {
        for what in [
            "handed over",
            "lost in the middle",
            "lost before a word",
            "silent and kept",
            "silent and gone",
            "by tokens",
            "by text",
            "by prefix",
            "here to node",
            "node to here",
            "node to node",
            "came back",
            "more than one move",
            "whole after a move",
            "whole",
            "stopped",
            "failed",
            "stayed",
        ] {
            assert!(self.0.contains_key(what), "never: {what}");
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(what, count)| format!("{what} {count}")).collect();
        f.write_str(&parts.join(", "))
    }
}
