//! Places that answer: a model whose answer follows from its weights and what is written so far, behind a backend that may
//! fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chat::{ChatEvent, ChatRequest, Finish, FinishReason, Progress, Role, Timings, Usage};
use futures::stream::{self, StreamExt};
use handoff::{BackendStream, Failure};
use routing::Continuation;
use tokio::time::sleep;
use wire::openai::{ChunkEncoder, Piece, ReplyHead, decode_chunk};
use wire::sse::{DONE, SseDecoder};

use crate::random::{Random, mix};

/// Why a scripted backend failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Broken {
    pub(crate) why: &'static str,
    pub(crate) is_final: bool,
}

impl Broken {
    pub(crate) const fn new(why: &'static str) -> Self {
        Self { why, is_final: false }
    }
}

impl Failure for Broken {
    fn is_final(&self) -> bool {
        self.is_final
    }

    fn is_cut_off(&self) -> bool {
        ["cut off", "the connection broke off"].contains(&self.why)
    }

    fn sentence(&self) -> String {
        self.why.to_owned()
    }
}

/// What goes wrong at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Can't be asked.
    Closed,
    /// Breaks off after so many bytes of its stream.
    CutAtByte(usize),
    /// Ends in order after so many characters, but without an end.
    EndsWithoutEnd(usize),
    /// Says nothing more after so many characters. `alive`: what it answers when it is asked how it is.
    Stalls {
        after: usize,
        alive: bool,
    },
    /// Says nothing for a while after so many characters, then goes on. `alive`: as above.
    Pauses {
        after: usize,
        ms: u64,
        alive: bool,
    },
    /// Ends the answer at once, whatever there is to say.
    ReturnsNothing,
    /// Says that its tokens mean the same as everybody's, which they don't.
    WrongTokenizer,
    /// Fails only when it is to go on with another one's answer.
    RefusesToGoOn,
    /// Takes seconds for every token.
    Slow,
}

/// A place and its model.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) weights: u64,
    pub(crate) level: Continuation,
    pub(crate) tokenizer: &'static str,
    pub(crate) fault: Fault,
    pub(crate) ms_per_token: u64,
    pub(crate) ms_to_first: u64,
    /// Behind HTTP: its events go through the bytes of a stream.
    pub(crate) is_remote: bool,
}

/// Characters of thinking at the beginning of each answer.
pub(crate) const THINKING: usize = 6;

/// No two begin with the same byte.
const CHARACTERS: [char; 8] = ['a', 'b', 'ü', 'c', '語', ' ', 'd', '…'];

/// What the model of these weights writes after `so_far`, thinking and text in one; `None` at its end.
pub(crate) fn next_character(weights: u64, so_far: &str) -> Option<char> {
    let count = so_far.chars().count();
    let mut hash = mix(weights);
    for character in so_far.chars() {
        hash = mix(hash ^ u64::from(character));
    }
    let len = 20 + mix(weights ^ 7) % 80;
    (count < len as usize).then(|| CHARACTERS[(hash % 8) as usize])
}

/// Tokens are bytes, moved by the tokenizer's own amount: most characters here are several.
fn token(tokenizer: &str, byte: u8) -> u32 {
    let moved = tokenizer.bytes().map(u32::from).sum::<u32>();
    u32::from(byte) + moved
}

fn byte(tokenizer: &str, token: u32) -> Option<u8> {
    token.checked_sub(tokenizer.bytes().map(u32::from).sum()).and_then(|byte| u8::try_from(byte).ok())
}

/// The answer as a request brings it along.
#[derive(Default)]
struct Begun {
    thinking: String,
    text: String,
    /// The bytes of all its tokens, where it brings them.
    bytes: Option<Vec<u8>>,
}

fn begun(spec: &Spec, request: &ChatRequest) -> Result<Begun, Broken> {
    let own = if spec.fault == Fault::WrongTokenizer { "liar" } else { spec.tokenizer };
    if let Some(written) = &request.written {
        let (thinking, text) = (written.thinking.expose().to_owned(), written.text.expose().to_owned());
        if written.tokens.is_empty() {
            return Ok(Begun { thinking, text, bytes: None });
        }
        // As the engine does: what was told must be what the tokens say.
        let bytes: Option<Vec<u8>> = written.tokens.iter().map(|token| byte(own, *token)).collect();
        let bytes = bytes.ok_or(Broken::new("a token that the model lacks"))?;
        if !bytes.starts_with(format!("{thinking}{text}").as_bytes()) {
            return Err(Broken::new("the answer so far is not what its tokens say"));
        }
        return Ok(Begun { thinking, text, bytes: Some(bytes) });
    }
    match request.messages.last() {
        Some(last) if last.role == Role::Assistant => {
            let thinking = last.reasoning.as_ref().map_or("", |reasoning| reasoning.expose()).to_owned();
            Ok(Begun { thinking, text: last.text.expose().to_owned(), bytes: None })
        }
        _ => Ok(Begun::default()),
    }
}

/// Counts the backends that run.
pub(crate) struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks a place.
pub(crate) fn open(
    spec: &Spec,
    request: &ChatRequest,
    running: &Arc<AtomicUsize>,
) -> Result<BackendStream<Broken>, Broken> {
    let goes_on = request.written.is_some() || request.messages.last().is_some_and(|last| last.role == Role::Assistant);
    match spec.fault {
        Fault::Closed => return Err(Broken::new("closed")),
        Fault::RefusesToGoOn if goes_on => return Err(Broken::new("it takes new messages only")),
        _ => {}
    }
    let alive = Alive::new(running);
    let spec = spec.clone();
    let script = match begun(&spec, request) {
        Err(broken) => vec![(0, Err(broken))],
        Ok(begun) => script(&spec, request, &begun),
    };
    let steps = if spec.is_remote { through_bytes(&spec, script) } else { script };
    let stream = stream::unfold((steps.into_iter(), alive), |(mut steps, alive)| async move {
        let (after, event) = steps.next()?;
        if after == NEVER {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(after)).await;
        Some((event, (steps, alive)))
    });
    Ok(stream.boxed())
}

const NEVER: u64 = u64::MAX;

type Step = (u64, Result<ChatEvent, Broken>);

fn script(spec: &Spec, request: &ChatRequest, begun: &Begun) -> Vec<Step> {
    let mut steps: Vec<Step> =
        vec![(spec.ms_to_first, Ok(ChatEvent::Progress(Progress::Prefill { done: 1, total: 1 })))];
    let pace = if spec.fault == Fault::Slow { 4_000 } else { spec.ms_per_token };
    let tells = spec.level == Continuation::Tokens;
    let mut written = format!("{}{}", begun.thinking, begun.text);
    let told = written.chars().count();
    let ids = |bytes: &[u8]| bytes.iter().map(|byte| token(spec.tokenizer, *byte)).collect::<Vec<u32>>();
    if tells && begun.bytes.is_none() && told > 0 {
        // Its own tokens for what was told by others.
        steps.push((0, Ok(ChatEvent::Tokens { from: 0, ids: ids(written.as_bytes()) })));
    }
    let known = begun.bytes.clone().unwrap_or_default();
    let mut drawn = match spec.level {
        Continuation::Prefix => 0,
        _ => known.len().max(written.len()),
    };
    let most = request.sampling.max_tokens.unwrap_or(usize::MAX);
    let limit = match spec.fault {
        Fault::EndsWithoutEnd(after) | Fault::Stalls { after, .. } => after,
        Fault::ReturnsNothing => 0,
        _ => usize::MAX,
    };
    let mut reason = FinishReason::Stop;
    'answer: while written.chars().count() - told < limit {
        // What was drawn elsewhere and not told yet comes first, were it but a part of a character.
        let begun = known.get(written.len()..).and_then(<[u8]>::first);
        let forced = begun.and_then(|first| CHARACTERS.into_iter().find(|c| c.to_string().as_bytes()[0] == *first));
        let Some(character) = forced.or_else(|| next_character(spec.weights, &written)) else { break };
        for byte in character.to_string().bytes().skip(known.len().saturating_sub(written.len())) {
            if drawn >= most {
                reason = FinishReason::Length;
                break 'answer;
            }
            if tells {
                steps.push((pace, Ok(ChatEvent::Tokens { from: drawn, ids: ids(&[byte]) })));
            }
            drawn += 1;
        }
        let pause = match spec.fault {
            Fault::Pauses { after, ms, .. } if written.chars().count() - told == after => ms,
            _ => 0,
        };
        let event = if written.chars().count() < THINKING { ChatEvent::Thinking } else { ChatEvent::Text };
        steps.push((pause + if tells { 0 } else { pace }, Ok(event(character.to_string()))));
        written.push(character);
    }
    match spec.fault {
        Fault::EndsWithoutEnd(_) => return steps,
        Fault::Stalls { .. } => {
            steps.push((NEVER, Err(Broken::new("never"))));
            return steps;
        }
        _ => {}
    }
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: drawn };
    let finish = Finish { reason, usage: Some(usage), timings: Timings::default() };
    steps.push((0, Ok(ChatEvent::Finished(finish))));
    steps
}

/// The same after it has gone through the bytes of an event stream, which may be cut anywhere.
fn through_bytes(spec: &Spec, script: Vec<Step>) -> Vec<Step> {
    let mut encoder = ChunkEncoder::new(ReplyHead { id: "a".into(), created: 0, model: "m".into() }, true);
    let (mut decoder, mut left) = (SseDecoder::default(), usize::MAX);
    if let Fault::CutAtByte(at) = spec.fault {
        left = at;
    }
    let (mut steps, mut waited): (Vec<Step>, u64) = (Vec::new(), 0);
    let (mut reason, mut usage) = (None, None);
    for (after, event) in script {
        waited = waited.saturating_add(after);
        let Ok(event) = event else {
            steps.push((waited, event));
            return steps;
        };
        let bytes = encoder.encode(&event);
        let arriving = &bytes.as_bytes()[..bytes.len().min(left)];
        left -= arriving.len();
        let mut events = std::collections::VecDeque::new();
        decoder.push(arriving, &mut events).expect("what we encode can be decoded");
        for event in events {
            if event.data == DONE {
                let finish =
                    Finish { reason: reason.unwrap_or(FinishReason::Stop), usage, timings: Timings::default() };
                steps.push((std::mem::take(&mut waited), Ok(ChatEvent::Finished(finish))));
                return steps;
            }
            let Piece { text, thinking, tokens, token_offset, finish, usage: told, .. } =
                decode_chunk(&event.data).expect("what we encode can be decoded");
            let mut push = |event| steps.push((std::mem::take(&mut waited), Ok(event)));
            if !tokens.is_empty() {
                push(ChatEvent::Tokens { from: token_offset.expect("Tidegate tells"), ids: tokens });
            }
            thinking.into_iter().for_each(|text| push(ChatEvent::Thinking(text)));
            text.into_iter().for_each(|text| push(ChatEvent::Text(text)));
            reason = finish.or(reason);
            usage = told.or(usage);
        }
        if left == 0 {
            steps.push((waited, Err(Broken::new("the connection broke off"))));
            return steps;
        }
    }
    steps
}

/// A random place.
pub(crate) fn random(random: &mut Random, name: &'static str, is_remote: bool, faults: u64) -> Spec {
    let fault = if random.below(100) >= faults {
        Fault::None
    } else {
        match random.below(12) {
            0 => Fault::Closed,
            1 | 2 => Fault::CutAtByte(random.below(9_000) as usize),
            3 => Fault::EndsWithoutEnd(random.below(40) as usize),
            4 => Fault::Stalls { after: random.below(40) as usize, alive: true },
            5 => Fault::Stalls { after: random.below(40) as usize, alive: false },
            // The engine here may fail, but it doesn't lie.
            6 if is_remote => Fault::ReturnsNothing,
            7 if is_remote => Fault::WrongTokenizer,
            8 => Fault::RefusesToGoOn,
            9 | 10 => Fault::Pauses {
                after: random.below(30) as usize,
                ms: random.pick(&[300, 1_500, 8_000, 45_000]),
                alive: !random.once_in(3),
            },
            _ => Fault::Slow,
        }
    };
    let levels = [
        Continuation::Tokens,
        Continuation::Tokens,
        Continuation::Tokens,
        Continuation::Text,
        Continuation::Prefix,
        Continuation::Prefix,
        Continuation::None,
    ];
    Spec {
        name,
        weights: if random.once_in(4) { random.next() } else { 1 },
        level: if is_remote { random.pick(&levels) } else { Continuation::Tokens },
        tokenizer: random.pick(&["a", "a", "a", "b"]),
        fault,
        ms_per_token: 10 + random.below(90),
        ms_to_first: random.below(3_000),
        is_remote,
    }
}
