use std::sync::{Mutex, Once};
use std::time::Duration;

use chat::{ChatRequest, Redacted, SamplingParams};
use futures::StreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, redirect};
use routing::EgressPass;
use tokio::time::timeout;
use wire::openai::{ChatCall, CompletionCall, encode_completion, encode_request};

use crate::answer::Answer;
use crate::{NodeAddress, NodeError, NodeStream};

/// Where a node goes on with plain text.
pub(crate) const COMPLETIONS: &str = "/v1/completions";

/// How long a node may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// Between two signs of life until the answer itself begins: a long prefill is silent on many engines. Any byte is a
    /// sign of life, that of a comment too.
    pub prefill_timeout: Duration,
    /// Between two signs of life once the answer has begun.
    pub inactivity_timeout: Duration,
    /// For each request of a probe.
    pub probe_timeout: Duration,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            prefill_timeout: Duration::from_secs(300),
            inactivity_timeout: Duration::from_secs(90),
            probe_timeout: Duration::from_secs(5),
        }
    }
}

/// A text to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextPrompt {
    /// The text.
    pub prompt: Redacted<String>,
    /// Names of control tokens that what follows must show.
    pub marks: Vec<String>,
    /// What the node does where it begins.
    pub seam: Seam,
}

/// What becomes of a space at the beginning of what follows a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seam {
    /// It is there.
    Kept,
    /// It is left out, as mlx_lm does; the node tells tokens, by which it can be put there again.
    SpaceDropped,
}

/// The client of one node. It holds no connection while nothing is asked.
pub struct NodeClient {
    http: Client,
    authorization: Option<HeaderValue>,
    id: String,
    pub(crate) address: NodeAddress,
    pub(crate) config: NodeConfig,
    /// What the node showed of itself when its engine was recognized, and the engine.
    pub(crate) recognized: Mutex<Option<(String, String)>>,
}

impl std::fmt::Debug for NodeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeClient")
            .field("id", &self.id)
            .field("address", &self.address)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl NodeClient {
    /// A client for the node at that address, which passes for `id` are for. Nothing is sent yet.
    ///
    /// # Errors
    /// `BadAddress` where the address or the key can't be used.
    pub fn new(id: &str, address: NodeAddress) -> Result<Self, NodeError> {
        Self::with_config(id, address, NodeConfig::default())
    }

    /// A client with other time limits.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_config(id: &str, address: NodeAddress, config: NodeConfig) -> Result<Self, NodeError> {
        install_crypto();
        // The fields are public, so the address may never have been through `parse`.
        let address = NodeAddress::parse(&address.url, address.key)?;
        let authorization = address.key.as_ref().map(|key| bearer(key.expose())).transpose()?;
        let mut builder = Client::builder()
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout)
            // A kept connection to a Mac that went to sleep looks alive and swallows the next request until the
            // inactivity limit; a new one fails within the connect limit.
            .pool_max_idle_per_host(0)
            // A redirect would carry the conversation, and perhaps the key, to a place nobody chose.
            .redirect(redirect::Policy::none())
            // The node's system answers these while its engine is busy. Where the network changed, nothing else tells that
            // this connection is dead while the node can be reached by another one.
            .tcp_keepalive(Duration::from_secs(5))
            .tcp_keepalive_interval(Duration::from_secs(3))
            .tcp_keepalive_retries(3);
        if address.is_loopback() {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| NodeError::BadAddress {
            why: format!("no connection can be prepared: {}", error.without_url()),
        })?;
        Ok(Self { http, authorization, id: id.to_owned(), address, config, recognized: Mutex::new(None) })
    }

    /// The node's address.
    pub fn address(&self) -> &NodeAddress {
        &self.address
    }

    /// Asks `model` to answer. The request is sent when the stream is first polled; dropping the stream closes the
    /// connection, at which every engine stops. The stream ends with `Finished`, or with an error, and never just so.
    /// This and [`complete`](Self::complete) are the only ways for a conversation out of this machine, and they take leave
    /// to go to just this node.
    ///
    /// # Errors
    /// `NoLeave` where the pass is for another node.
    pub fn chat(&self, pass: EgressPass, model: &str, request: ChatRequest) -> Result<NodeStream, NodeError> {
        if pass.node_id() != self.id {
            return Err(NodeError::NoLeave);
        }
        Ok(self.ask(model, request))
    }

    /// Asks `model` to answer; nothing of the user's may be in `request` where they didn't give leave.
    pub(crate) fn ask(&self, model: &str, request: ChatRequest) -> NodeStream {
        let request = ChatRequest { model: Some(model.to_owned()), ..request };
        let body = encode_request(&ChatCall { request, n: 1, stream: true, include_usage: true });
        self.stream("/v1/chat/completions", model, body)
    }

    /// Asks `model` to go on with a text as it stands, without a template: the stream's texts are what follows it, those of
    /// the control tokens `marks` by their names where the node shows them. One that drops a space there first tells the id
    /// of the token that it begins with; it draws the same one again, for which the sampling must name a seed. All else is
    /// as in [`chat`](Self::chat).
    ///
    /// # Errors
    /// `NoLeave` where the pass is for another node.
    pub fn complete(
        &self,
        pass: EgressPass,
        model: &str,
        text: TextPrompt,
        sampling: SamplingParams,
    ) -> Result<NodeStream, NodeError> {
        if pass.node_id() != self.id {
            return Err(NodeError::NoLeave);
        }
        let TextPrompt { prompt, marks, seam } = text;
        let call =
            CompletionCall { model: model.to_owned(), prompt, marks, sampling, stream: true, tells_tokens: false };
        let rest = self.stream(COMPLETIONS, model, encode_completion(&call));
        if seam == Seam::Kept {
            return Ok(rest);
        }
        let sampling = SamplingParams { max_tokens: Some(1), ..call.sampling };
        let call = CompletionCall { sampling, stream: false, tells_tokens: true, ..call };
        Ok(rest.after_first_token(self.stream(COMPLETIONS, model, encode_completion(&call))))
    }

    fn stream(&self, path: &str, model: &str, body: Vec<u8>) -> NodeStream {
        let request = self
            .request(Method::POST, path)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream, application/json")
            .body(body);
        let answer = Answer::new(request, model.to_owned(), self.address.key.clone(), self.config);
        // A rest is told with probabilities only because some servers tell its tokens with them.
        NodeStream::new(if path == COMPLETIONS { answer.without_logprobs() } else { answer })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.address.url));
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        }
    }
}

fn bearer(key: &str) -> Result<HeaderValue, NodeError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
        .map_err(|_| NodeError::BadAddress { why: "the key has a character that no key can have".to_owned() })?;
    value.set_sensitive(true);
    Ok(value)
}

/// reqwest is built without cryptography of its own choice; ring is what builds on every target without a C toolchain
/// for another one. Where the program has installed a provider already, that one stays.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("a cryptography provider was installed already");
        }
    });
}

/// Why a body couldn't be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BrokenBody {
    TooLong,
    /// It ended before its end, or was packed in a way that can't be read.
    CutOff,
    Silent,
}

/// The body, where it is no longer than `limit` bytes, whole, and never silent for `patience`.
pub(crate) async fn read_bounded(response: Response, limit: usize, patience: Duration) -> Result<Vec<u8>, BrokenBody> {
    let mut stream = response.bytes_stream();
    let mut body = Vec::new();
    while let Some(bytes) = timeout(patience, stream.next()).await.map_err(|_| BrokenBody::Silent)? {
        body.extend_from_slice(&bytes.map_err(|_| BrokenBody::CutOff)?);
        if body.len() > limit {
            return Err(BrokenBody::TooLong);
        }
    }
    Ok(body)
}

/// What a server said, without the key: some repeat the one that they refuse.
pub(crate) fn without_key(sentence: &str, key: Option<&Redacted<String>>) -> String {
    key.map_or_else(|| sentence.to_owned(), |key| sentence.replace(key.expose(), "…"))
}
