//! The nodes the user added, with what was last heard from each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use nodes::{NodeAddress, NodeClient, NodeState, NodeStatus, Seam};
use routing::{Continuation, NodeOption, Trust};
use tokio::sync::watch;

use crate::error::{AppError, ErrorCode, sentence};
use crate::trust;

/// One node as it is shown.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Stable name that requests and stored answers use.
    pub id: String,
    /// What the user sees: the host's name.
    pub name: String,
    /// Where it listens.
    pub url: String,
    /// Whether a key is kept for it.
    pub has_key: bool,
    /// Whose machine it is.
    pub trust: Trust,
    /// What the last probe or answer told; `None` until the first.
    pub status: Option<NodeStatus>,
    /// How its models go on with answers that were begun elsewhere, as far as they were asked.
    pub(crate) continues: HashMap<String, Continues>,
    /// Measured while it answered last.
    pub decode_tokens_per_sec: Option<f64>,
}

/// How a model of a node goes on with an answer that was begun elsewhere, as far as it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Continues {
    /// A chat whose last message is the beginning of the answer.
    pub(crate) chat: Option<bool>,
    /// Text that the template of the model's file here has rendered, and how it does; `Some(None)` where it doesn't.
    pub(crate) text: Option<Option<Seam>>,
    /// Whether it shows these tokens by their names in text.
    pub(crate) shown: HashMap<u32, bool>,
}

impl Continues {
    /// The most exact way; `None` where nobody knows yet.
    fn level(&self) -> Option<Continuation> {
        if self.text.flatten().is_some() {
            return Some(Continuation::Text);
        }
        self.chat.map(|continues| if continues { Continuation::Prefix } else { Continuation::None })
    }
}

impl NodeView {
    /// The model that a request for `wanted` runs there: the one of that name, else the node's first.
    pub fn model_for(&self, wanted: Option<&str>) -> Option<&str> {
        let models = &self.status.as_ref()?.models;
        wanted
            .and_then(|wanted| models.iter().find(|model| same_model(model, wanted)))
            .or_else(|| models.first())
            .map(String::as_str)
    }

    /// What serves there, where it is known.
    pub(crate) fn engine(&self) -> Option<&str> {
        self.status.as_ref()?.engine.as_deref()
    }

    /// Names what token ids mean to its model, where it tells.
    pub(crate) fn tokenizer_of(&self, model: &str) -> Option<&str> {
        self.status.as_ref()?.tokenizers.get(model).map(String::as_str)
    }

    /// How its model goes on with an answer that was begun elsewhere, as far as that is known: another Tidegate says what
    /// its tokens mean, the others were asked.
    pub(crate) fn continuation_of(&self, model: &str) -> Option<Continuation> {
        match self.tokenizer_of(model) {
            Some(_) => Some(Continuation::Tokens),
            None => self.continues.get(model).and_then(Continues::level),
        }
    }

    pub(crate) fn continues(&self, model: &str) -> Continues {
        self.continues.get(model).cloned().unwrap_or_default()
    }

    pub(crate) fn note_continues(&mut self, model: &str, found: Continues) {
        self.continues.insert(model.to_owned(), found);
    }

    pub(crate) fn option(&self, wanted: Option<&str>) -> NodeOption {
        NodeOption {
            id: self.id.clone(),
            name: self.name.clone(),
            reachable: self.status.as_ref().map(|status| matches!(status.state, NodeState::Ready)),
            has_model: self.model_for(wanted).is_some(),
            trust: Some(self.trust),
            continuation: self.model_for(wanted).and_then(|model| self.continuation_of(model)),
            decode_tokens_per_sec: self.decode_tokens_per_sec,
            ..NodeOption::default()
        }
    }
}

/// Whether a node's name for a model means the local id: engines add paths, endings and capital letters.
pub(crate) fn same_model(theirs: &str, ours: &str) -> bool {
    let plain = |name: &str| {
        let name = name.rsplit(['/', '\\']).next().unwrap_or(name).to_lowercase();
        name.strip_suffix(".gguf").map_or(name.clone(), str::to_owned)
    };
    plain(theirs) == plain(ours)
}

struct Entry {
    client: Arc<NodeClient>,
    view: NodeView,
    /// Named at start and so not in the store.
    temporary: bool,
}

pub(crate) struct NodeList {
    entries: Mutex<HashMap<String, Entry>>,
    views: watch::Sender<Vec<NodeView>>,
}

impl NodeList {
    pub(crate) fn new() -> Self {
        Self { entries: Mutex::default(), views: watch::channel(Vec::new()).0 }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Vec<NodeView>> {
        self.views.subscribe()
    }

    pub(crate) fn views(&self) -> Vec<NodeView> {
        self.views.borrow().clone()
    }

    /// Adds a node that answers under `address`; a second one of the same name gets a number. It is trusted as far as its
    /// address lets suppose.
    pub(crate) fn insert(
        &self,
        id: Option<String>,
        address: NodeAddress,
        temporary: bool,
    ) -> Result<NodeView, AppError> {
        let name = host_of(&address.url);
        let url = address.url.clone();
        let has_key = address.key.is_some();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = entries.values().find(|entry| entry.view.url == url) {
            return Err(AppError::new(ErrorCode::BadRequest, format!("{} is on the list already.", known.view.name)));
        }
        let id = id.unwrap_or_else(|| free_id(&name, |id| entries.contains_key(id)));
        let client = NodeClient::new(&id, address)
            .map_err(|error| AppError::new(ErrorCode::BadRequest, sentence(&error.to_string())))?;
        let trust = trust::of_address(&url);
        let view = NodeView {
            id: id.clone(),
            name,
            url,
            has_key,
            trust,
            status: None,
            continues: HashMap::new(),
            decode_tokens_per_sec: None,
        };
        entries.insert(id, Entry { client: Arc::new(client), view: view.clone(), temporary });
        drop(entries);
        self.publish();
        Ok(view)
    }

    /// Takes a node off the list; tells whether the store knows it.
    pub(crate) fn remove(&self, id: &str) -> Option<bool> {
        let removed = self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(id)?;
        self.publish();
        Some(!removed.temporary)
    }

    pub(crate) fn client(&self, id: &str) -> Option<(Arc<NodeClient>, NodeView)> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(id).map(|entry| (entry.client.clone(), entry.view.clone()))
    }

    pub(crate) fn update(&self, id: &str, change: impl FnOnce(&mut NodeView)) -> Option<NodeView> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get_mut(id)?;
        change(&mut entry.view);
        let view = entry.view.clone();
        drop(entries);
        self.publish();
        Some(view)
    }

    /// Asks the node what it is and has. Takes as long as the node's own time limits.
    pub(crate) async fn probe(&self, id: &str) -> Option<NodeView> {
        let (client, _) = self.client(id)?;
        let status = client.probe().await;
        self.update(id, |view| view.status = Some(status))
    }

    /// Asks the nodes that were never heard from: nobody knows yet which models they have.
    pub(crate) async fn probe_unknown(&self) {
        let unknown: Vec<String> =
            self.views().into_iter().filter(|view| view.status.is_none()).map(|view| view.id).collect();
        futures::future::join_all(unknown.iter().map(|id| self.probe(id))).await;
    }

    pub(crate) async fn probe_all(&self) {
        let ids: Vec<String> = self.views().into_iter().map(|view| view.id).collect();
        futures::future::join_all(ids.iter().map(|id| self.probe(id))).await;
    }

    fn publish(&self) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut views: Vec<NodeView> = entries.values().map(|entry| entry.view.clone()).collect();
        drop(entries);
        views.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
        self.views.send_replace(views);
    }
}

fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    match host {
        "127.0.0.1" | "localhost" | "[::1]" => authority.to_owned(),
        _ => host.strip_suffix(".local").unwrap_or(host).to_owned(),
    }
}

fn free_id(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let slug: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    if !taken(&slug) {
        return slug;
    }
    (2..).map(|n| format!("{slug}-{n}")).find(|id| !taken(id)).unwrap_or(slug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_after_its_host() {
        assert_eq!(host_of("http://studio.local:11500"), "studio");
        assert_eq!(host_of("https://gpu.example.org"), "gpu.example.org");
        assert_eq!(host_of("http://127.0.0.1:8080"), "127.0.0.1:8080");
    }

    #[test]
    fn engines_spell_the_same_model_differently() {
        assert!(same_model("/srv/models/Qwen3-8B-Q4_K_M.gguf", "qwen3-8b-q4_k_m"));
        assert!(!same_model("qwen3-8b-q8_0", "qwen3-8b-q4_k_m"));
    }

    #[test]
    fn ids_are_free_of_what_a_url_can_hold_and_unique() {
        assert_eq!(free_id("127.0.0.1:80", |_| false), "127-0-0-1-80");
        assert_eq!(free_id("studio", |id| id == "studio"), "studio-2");
    }
}
