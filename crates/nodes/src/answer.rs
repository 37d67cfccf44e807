use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use chat::{ChatEvent, Finish, FinishReason, Redacted, Timings, ToolCall, Usage};
use futures::Stream;
use futures::future::ready;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::time::timeout;
use wire::openai::{Piece, ToolCallPart, decode_chunk, decode_error, decode_response};
use wire::sse::{DONE, SseDecoder, SseEvent};

use crate::client::{BrokenBody, read_bounded, without_key};
use crate::meter::Meter;
use crate::retry_after::read_retry_after;
use crate::{NodeConfig, NodeError, Silence};

/// The most bytes of an error that are read, and of an answer that comes in one piece.
const ERROR_LIMIT: usize = 64 << 10;
const ANSWER_LIMIT: usize = 16 << 20;
/// The most calls of tools in one answer.
const MOST_CALLS: usize = 128;
/// How long the token counts and the end mark may take once the answer is whole.
const AFTER_FINISH: Duration = Duration::from_secs(5);

/// One answer of a node: any number of events, then `Finished` or one error. Dropping it closes the connection.
pub struct NodeStream {
    events: BoxStream<'static, Result<ChatEvent, NodeError>>,
}

impl NodeStream {
    pub(crate) fn new(answer: Answer) -> Self {
        let events = stream::unfold(answer, |mut answer| async move { Some((answer.next().await?, answer)) });
        Self { events: events.boxed() }
    }

    /// The same after the token that `first` draws, whose id alone is told.
    pub(crate) fn after_first_token(self, mut first: Self) -> Self {
        let events = stream::once(async move {
            let mut token = None;
            while let Some(event) = first.try_next().await? {
                if matches!(event, ChatEvent::Tokens { .. }) {
                    token = Some(event);
                }
            }
            let token = token.ok_or_else(|| NodeError::not_a_node("it doesn't tell which token it draws"))?;
            Ok(stream::once(ready(Ok(token))).chain(self))
        });
        Self { events: events.try_flatten().boxed() }
    }
}

impl std::fmt::Debug for NodeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeStream").finish_non_exhaustive()
    }
}

impl Stream for NodeStream {
    type Item = Result<ChatEvent, NodeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(cx)
    }
}

/// What is being read: a request not yet sent, a stream of events, or nothing more.
enum Source {
    Unasked(Box<RequestBuilder>),
    Events(Box<Response>),
    Ended,
}

pub(crate) struct Answer {
    source: Source,
    model: String,
    key: Option<Redacted<String>>,
    config: NodeConfig,
    decoder: SseDecoder,
    out: VecDeque<Result<ChatEvent, NodeError>>,
    meter: Meter,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    told: Option<Timings>,
    tells_logprobs: bool,
    /// A part of the answer itself came: the prompt has been read.
    has_begun: bool,
    /// Tokens of the answer, as far as their ids were told.
    tokens: usize,
    /// The calls that came so far, by the index that the node gives them.
    calls: Vec<(usize, ToolCall)>,
}

impl Answer {
    pub(crate) fn new(
        request: RequestBuilder,
        model: String,
        key: Option<Redacted<String>>,
        config: NodeConfig,
    ) -> Self {
        Self {
            source: Source::Unasked(Box::new(request)),
            model,
            key,
            config,
            decoder: SseDecoder::default(),
            out: VecDeque::new(),
            meter: Meter::start(Instant::now()),
            reason: None,
            usage: None,
            told: None,
            tells_logprobs: true,
            has_begun: false,
            tokens: 0,
            calls: Vec::new(),
        }
    }

    pub(crate) fn without_logprobs(self) -> Self {
        Self { tells_logprobs: false, ..self }
    }

    async fn next(&mut self) -> Option<Result<ChatEvent, NodeError>> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Some(event);
            }
            match std::mem::replace(&mut self.source, Source::Ended) {
                Source::Unasked(request) => {
                    self.meter = Meter::start(Instant::now());
                    if let Err(error) = self.ask(*request).await {
                        self.end(Err(error));
                    }
                }
                Source::Events(mut response) => match self.next_bytes(&mut response).await {
                    Ok(Some(bytes)) => {
                        self.source = Source::Events(response);
                        self.take(&bytes);
                    }
                    Ok(None) => self.take_end(),
                    Err(error) => self.end(Err(error)),
                },
                Source::Ended => return None,
            }
        }
    }

    async fn ask(&mut self, request: RequestBuilder) -> Result<(), NodeError> {
        let patience = self.config.prefill_timeout;
        let response = timeout(patience, request.send())
            .await
            .map_err(|_| NodeError::TimedOut { after: patience, silence: Silence::BeforeReply })?
            .map_err(|error| NodeError::unreachable(error, self.config.connect_timeout))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if media_type.starts_with("text/event-stream") {
            self.source = Source::Events(Box::new(response));
            Ok(())
        } else if media_type.starts_with("text/html") {
            Err(NodeError::not_a_node("a web page came instead of an answer"))
        } else {
            self.ask_in_one_piece(response).await
        }
    }

    /// Some servers don't know streaming and send the whole answer as JSON.
    async fn ask_in_one_piece(&mut self, response: Response) -> Result<(), NodeError> {
        // Nothing of it comes before all is decoded.
        let patience = self.config.prefill_timeout;
        let body = read_bounded(response, ANSWER_LIMIT, patience).await.map_err(|broken| match broken {
            BrokenBody::Silent => NodeError::TimedOut { after: patience, silence: Silence::BeforeAnswer },
            BrokenBody::CutOff => NodeError::CutOff,
            BrokenBody::TooLong => NodeError::not_a_node("an answer came that is longer than any can be"),
        })?;
        // An event stream that a proxy gave another name begins with a field or a comment, never with a brace.
        let is_json = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        if !is_json {
            self.take(&body);
            self.take_end();
            return Ok(());
        }
        let piece =
            decode_response(&body).map_err(|error| NodeError::not_a_node(format!("no answer came: {error}")))?;
        if !self.take_piece(piece) {
            return Ok(());
        }
        // A whole response is whole by being one; some servers name no reason in it.
        self.reason = self.reason.or(Some(FinishReason::Stop));
        self.close();
        Ok(())
    }

    async fn refusal(&self, response: Response) -> NodeError {
        let status = response.status();
        if status.is_redirection() {
            return NodeError::not_a_node("the address only points to another one: use that one instead");
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return NodeError::Unauthorized;
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| read_retry_after(value, SystemTime::now()));
        let patience = self.config.inactivity_timeout.min(AFTER_FINISH);
        let body = read_bounded(response, ERROR_LIMIT, patience).await.unwrap_or_default();
        let error = decode_error(&body);
        let sentence = error.as_ref().map(|error| without_key(&error.message, self.key.as_ref()));
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                NodeError::Busy { retry_after, sentence }
            }
            // Frameworks say "Not Found" for a path they don't have; what says more than that speaks of the model.
            StatusCode::NOT_FOUND if sentence.as_ref().is_some_and(|text| !text.eq_ignore_ascii_case("not found")) => {
                NodeError::ModelMissing { model: self.model.clone(), sentence }
            }
            _ if error.is_some_and(|error| error.code.as_deref() == Some("model_not_found")) => {
                NodeError::ModelMissing { model: self.model.clone(), sentence }
            }
            _ => NodeError::Refused { status: status.as_u16(), sentence },
        }
    }

    async fn next_bytes(&self, response: &mut Response) -> Result<Option<Vec<u8>>, NodeError> {
        let is_whole = self.reason.is_some();
        let silence = if self.has_begun { Silence::InAnswer } else { Silence::BeforeAnswer };
        let patience = match silence {
            _ if is_whole => self.config.inactivity_timeout.min(AFTER_FINISH),
            Silence::InAnswer => self.config.inactivity_timeout,
            _ => self.config.prefill_timeout,
        };
        match timeout(patience, response.chunk()).await {
            Ok(Ok(bytes)) => Ok(bytes.map(Vec::from)),
            // Whatever happens after the end of the answer takes nothing from it.
            _ if is_whole => Ok(None),
            Ok(Err(error)) => {
                tracing::debug!(error = &error.without_url() as &dyn std::error::Error, "a node's answer broke off");
                Err(NodeError::CutOff)
            }
            Err(_) => Err(NodeError::TimedOut { after: patience, silence }),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut events = VecDeque::new();
        let outcome = self.decoder.push(bytes, &mut events);
        for event in events {
            if !self.take_event(&event) {
                return;
            }
        }
        if let Err(error) = outcome {
            self.end(Err(NodeError::not_a_node(format!("no answer came: {error}"))));
        }
    }

    /// The connection was closed in order; the last event may not have been.
    fn take_end(&mut self) {
        if let Some(event) = std::mem::take(&mut self.decoder).finish()
            && (event.data == DONE || decode_chunk(&event.data).is_ok())
            && !self.take_event(&event)
        {
            return;
        }
        self.close();
    }

    /// Takes one event of the stream; false where it was the last.
    fn take_event(&mut self, event: &SseEvent) -> bool {
        if event.data == DONE {
            self.close();
            return false;
        }
        if event.name.as_deref() == Some("error") {
            let error = decode_error(event.data.as_bytes())
                .or_else(|| decode_error(format!("{{\"error\":{}}}", event.data).as_bytes()));
            let sentence = error
                .map_or_else(|| "it didn't say why".to_owned(), |error| without_key(&error.message, self.key.as_ref()));
            self.end(Err(NodeError::Failed { sentence }));
            return false;
        }
        match decode_chunk(&event.data) {
            Ok(piece) => self.take_piece(piece),
            Err(error) => {
                self.end(Err(NodeError::not_a_node(format!("no part of an answer came: {error}"))));
                false
            }
        }
    }

    fn take_piece(&mut self, piece: Piece) -> bool {
        if let Some(error) = piece.error {
            let sentence = without_key(&error.message, self.key.as_ref());
            self.end(Err(NodeError::Failed { sentence }));
            return false;
        }
        if piece.text.is_some() || piece.thinking.is_some() || !piece.tool_calls.is_empty() {
            self.has_begun = true;
            self.meter.note(Instant::now());
        }
        if !piece.tokens.is_empty() {
            let from = piece.token_offset.unwrap_or(self.tokens);
            self.has_begun = true;
            self.tokens = from.saturating_add(piece.tokens.len());
            self.out.push_back(Ok(ChatEvent::Tokens { from, ids: piece.tokens }));
        }
        if self.tells_logprobs && !piece.logprobs.is_empty() {
            self.out.push_back(Ok(ChatEvent::Logprobs(piece.logprobs)));
        }
        self.out.extend(piece.thinking.map(|text| Ok(ChatEvent::Thinking(text))));
        self.out.extend(piece.text.map(|text| Ok(ChatEvent::Text(text))));
        for part in piece.tool_calls {
            if !self.take_call(part) {
                self.end(Err(NodeError::not_a_node("it asks for more calls than an answer can hold")));
                return false;
            }
        }
        self.usage = piece.usage.or(self.usage);
        self.told = piece.timings.or(self.told);
        match piece.finish {
            // We did not cancel, so whoever did has cut off our answer: a node that is shutting down.
            Some(FinishReason::Cancelled) => {
                self.end(Err(NodeError::CutOff));
                false
            }
            reason => {
                self.reason = reason.or(self.reason);
                true
            }
        }
    }

    /// Parts of calls are put together; a call is told when it is whole, which only the end of the answer says. False
    /// where there are too many.
    fn take_call(&mut self, part: ToolCallPart) -> bool {
        let at = self.calls.iter().position(|(index, _)| *index == part.index).unwrap_or_else(|| {
            self.calls.push((part.index, ToolCall::default()));
            self.calls.len() - 1
        });
        let call = &mut self.calls[at].1;
        call.arguments.0.push_str(part.arguments.expose());
        call.id = part.id.unwrap_or_else(|| std::mem::take(&mut call.id));
        call.name = part.name.unwrap_or_else(|| std::mem::take(&mut call.name));
        let bytes: usize = self.calls.iter().map(|(_, call)| call.arguments.expose().len()).sum();
        self.calls.len() <= MOST_CALLS && bytes <= ANSWER_LIMIT
    }

    /// Nothing more comes: the answer is whole if the node said so.
    fn close(&mut self) {
        if self.reason.is_some() {
            let calls = std::mem::take(&mut self.calls).into_iter().enumerate();
            self.out.extend(calls.map(|(index, (_, call))| Ok(ChatEvent::ToolCall { index, call })));
        }
        let end = match self.reason {
            Some(reason) => Ok(ChatEvent::Finished(Finish {
                reason,
                usage: self.usage,
                timings: self.meter.timings(self.usage, self.told),
            })),
            None => Err(NodeError::CutOff),
        };
        self.end(end);
    }

    fn end(&mut self, last: Result<ChatEvent, NodeError>) {
        self.source = Source::Ended;
        self.out.push_back(last);
    }
}
