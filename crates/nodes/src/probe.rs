use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use chat::Redacted;
use reqwest::header::{CONTENT_TYPE, SERVER};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::timeout;
use wire::openai::{DecodeError, ModelEntry, decode_error, decode_models};

use crate::client::{read_bounded, without_key};
use crate::{NodeClient, NodeError, Silence};

/// The most bytes of a list of models that are read.
const LIST_LIMIT: usize = 4 << 20;

/// What a node said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Whether it can be asked.
    pub state: NodeState,
    /// The models it lists; empty unless ready.
    pub models: Vec<String>,
    /// Names what token ids mean to some of them, where the node tells: only another Tidegate does.
    pub tokenizers: HashMap<String, String>,
    /// What serves there, where it can be told: "Tidegate", "llama.cpp", "vLLM", "Ollama", "mlx_lm", ….
    pub engine: Option<String>,
    /// From the request for its models to the beginning of the reply, with the time to connect.
    pub round_trip: Option<Duration>,
}

/// Whether a node can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It listed its models.
    Ready,
    /// Nothing answers there now, or it is starting; the sentence says what was found.
    Unreachable(String),
    /// It wants a key, or another one.
    Unauthorized,
    /// Something else answers there; the sentence says what.
    NotANode(String),
}

impl NodeState {
    /// One sentence for the user; `None` where all is well.
    pub fn sentence(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Unreachable(sentence) | Self::NotANode(sentence) => Some(sentence),
            Self::Unauthorized => Some("The node wants a key, or another one than this."),
        }
    }
}

struct Fetched {
    status: StatusCode,
    server: String,
    is_html: bool,
    round_trip: Duration,
    /// `None` where it was too long or broke off.
    body: Option<Vec<u8>>,
}

impl NodeClient {
    /// Asks the node what it is and which models it has. Never an error: what goes wrong is the node's state.
    pub async fn probe(&self) -> NodeStatus {
        let status = |state| NodeStatus {
            state,
            models: Vec::new(),
            tokenizers: HashMap::new(),
            engine: None,
            round_trip: None,
        };
        let host = self.address.authority();
        let fetched = match self.fetch("/v1/models").await {
            Ok(fetched) => fetched,
            Err(NodeError::TimedOut { after, .. }) => {
                let sentence =
                    format!("{host} accepts connections but didn't answer within {} s.", after.as_secs_f64());
                return status(NodeState::Unreachable(sentence));
            }
            Err(error) => return status(NodeState::Unreachable(format!("{host} can't be reached: {error}."))),
        };
        let models = match judge(host, &fetched, self.address.key.as_ref()) {
            Ok(models) => models,
            Err(state) => return NodeStatus { round_trip: Some(fetched.round_trip), ..status(state) },
        };
        NodeStatus {
            state: NodeState::Ready,
            engine: self.recognize(&fetched.server, &models).await,
            tokenizers: models.iter().filter_map(|model| Some((model.id.clone(), model.tokenizer.clone()?))).collect(),
            models: models.into_iter().map(|model| model.id).collect(),
            round_trip: Some(fetched.round_trip),
        }
    }

    async fn fetch(&self, path: &str) -> Result<Fetched, NodeError> {
        let patience = self.config.probe_timeout;
        let started = Instant::now();
        let response = timeout(patience, self.request(Method::GET, path).send())
            .await
            .map_err(|_| NodeError::TimedOut { after: patience, silence: Silence::BeforeReply })?
            .map_err(|error| NodeError::unreachable(error, self.config.connect_timeout))?;
        let round_trip = started.elapsed();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (status, server) = (response.status(), header(SERVER).to_owned());
        let is_html = header(CONTENT_TYPE).starts_with("text/html");
        // One that drips bytes for ever is stopped by the time limit for the whole body.
        let body = timeout(patience, read_bounded(response, LIST_LIMIT, patience)).await.ok().and_then(Result::ok);
        Ok(Fetched { status, server, is_html, round_trip, body })
    }

    /// Finds out which engine serves there: from what the list of models shows where that is enough, else by asking for
    /// what only one engine has. Asked again only when the node looks different from last time.
    async fn recognize(&self, server: &str, models: &[ModelEntry]) -> Option<String> {
        let owners: Vec<&str> = models.iter().filter_map(|model| model.owned_by.as_deref()).collect();
        if let Some(engine) = engine_shown(server, &owners) {
            return Some(engine.to_owned());
        }
        let looks = format!("{server}\n{}", owners.join("\n"));
        let known = self.recognized.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, engine)) = known.filter(|(known, _)| *known == looks) {
            return Some(engine);
        }
        let (health, props, version, ollama) = futures::join!(
            self.fetch_json("/health"),
            self.fetch_json("/props"),
            self.fetch_json("/version"),
            self.fetch_json("/api/version"),
        );
        let says = |value: &Option<Value>, name: &str| value.as_ref().and_then(|value| value.get(name)).cloned();
        let engine = if says(&health, "engine") == Some(Value::from("tidegate")) {
            "Tidegate"
        } else if says(&props, "default_generation_settings").is_some() {
            "llama.cpp"
        } else if says(&ollama, "version").is_some() {
            "Ollama"
        } else if says(&version, "version").is_some() {
            "vLLM"
        } else if server.starts_with("BaseHTTP/") && says(&health, "status") == Some(Value::from("ok")) {
            "mlx_lm"
        } else {
            return None;
        };
        *self.recognized.lock().unwrap_or_else(PoisonError::into_inner) = Some((looks, engine.to_owned()));
        Some(engine.to_owned())
    }

    async fn fetch_json(&self, path: &str) -> Option<Value> {
        let fetched = self.fetch(path).await.ok()?;
        if fetched.status != StatusCode::OK {
            return None;
        }
        serde_json::from_slice(&fetched.body?).ok()
    }
}

/// The engine, where headers or owners name it.
fn engine_shown(server: &str, owners: &[&str]) -> Option<&'static str> {
    if server == "llama.cpp" {
        return Some("llama.cpp");
    }
    owners.iter().find_map(|owner| match *owner {
        "tidegate" => Some("Tidegate"),
        "llamacpp" => Some("llama.cpp"),
        "vllm" => Some("vLLM"),
        "sglang" => Some("SGLang"),
        "organization_owner" => Some("LM Studio"),
        // llama-cpp-python's server owns its models itself.
        "me" => Some("llama-cpp-python"),
        _ => None,
    })
}

fn judge(host: &str, fetched: &Fetched, key: Option<&Redacted<String>>) -> Result<Vec<ModelEntry>, NodeState> {
    let status = fetched.status;
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(NodeState::Unauthorized);
    }
    if status.is_redirection() {
        return Err(NodeState::NotANode(format!("{host} only points to another address: add that one instead.")));
    }
    let said = || fetched.body.as_deref().and_then(decode_error).map(|error| without_key(&error.message, key));
    let with =
        |sentence: Option<String>| sentence.map(|text| format!(": {}", text.trim_end_matches('.'))).unwrap_or_default();
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return Err(NodeState::Unreachable(format!("{host} is busy{}.", with(said()))));
    }
    if status.is_server_error() {
        let code = status.as_u16();
        return Err(NodeState::Unreachable(format!("{host} answers with error {code}{}.", with(said()))));
    }
    if fetched.is_html {
        return Err(NodeState::NotANode(format!("{host} answers with a web page, not as a node does.")));
    }
    if status != StatusCode::OK {
        let code = status.as_u16();
        let sentence = format!("{host} has no list of models (error {code}{}), so it is no node.", with(said()));
        return Err(NodeState::NotANode(sentence));
    }
    let Some(body) = &fetched.body else {
        return Err(NodeState::NotANode(format!("{host} sends a list of models that breaks off or never ends.")));
    };
    decode_models(body).map_err(|error| {
        NodeState::NotANode(match error {
            DecodeError::NotJson { .. } if body.is_empty() => format!("{host} sends an empty list of models."),
            DecodeError::NotJson { .. } => format!("{host} answers, but not in JSON as a node does."),
            DecodeError::Missing(_) => format!("{host} answers, but not with a list of models as a node does."),
        })
    })
}
