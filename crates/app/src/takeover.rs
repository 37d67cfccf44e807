//! How a node goes on with an answer that was begun elsewhere: asked once for each of its models, and remembered.

use std::time::Duration;

use chat::ChatRequest;
use engine::RenderedAnswer;
use futures::future::join_all;
use handoff::Takeover;
use nodes::{NodeClient, probe_request};
use routing::{Continuation, EgressPass, NodeOption, Place, Running, may_leave};
use tokio::time::timeout;

use crate::App;
use crate::answer_host::Asked;
use crate::model_list::ModelEntry;
use crate::node_list::{Continues, same_model};

/// How long the nodes may take to show how they go on, all at once, while the answer is written elsewhere: they may load a
/// model first.
const PATIENCE: Duration = Duration::from_secs(120);
/// The same while nobody writes it.
const SHORT_PATIENCE: Duration = Duration::from_secs(30);

/// Asks the nodes that `running` could move to how they go on, where nobody knows yet; a decision names no others.
pub(crate) async fn probe_unknown(
    app: &App,
    asked: &mut Asked,
    request: &ChatRequest,
    running: &Running,
    wanted: Option<&Place>,
) {
    let could_move_to = |option: &&NodeOption| {
        let place = Place::Node(option.id.clone());
        let is_asked_for = wanted.is_none_or(|wanted| *wanted == place);
        // Where nobody wants it elsewhere, it was cut off, and may go on where it was.
        let is_left = running.place == place && (running.concern.is_some() || wanted.is_some());
        let is_left = is_left || running.failed.contains(&place);
        let is_ready = option.reachable == Some(true) && option.has_model && option.continuation.is_none();
        is_asked_for && !is_left && is_ready && may_leave(&asked.policy, &asked.demand, option).is_ok()
    };
    let unknown: Vec<String> = asked.options.iter().filter(could_move_to).map(|option| option.id.clone()).collect();
    let patience = if running.failed.contains(&running.place) { SHORT_PATIENCE } else { PATIENCE };
    let probes = unknown.iter().map(|id| timeout(patience, takeover_of_node(app, asked, request, id)));
    join_all(probes).await;
    for option in &mut asked.options {
        let known = app.inner.nodes.client(&option.id).map(|(_, view)| view.option(asked.model.as_deref()));
        option.continuation = known.and_then(|known| known.continuation);
    }
}

/// How the node goes on with an answer to `request`. `None` where it takes new messages only, or nothing may go there.
pub(crate) async fn takeover_of_node(app: &App, asked: &Asked, request: &ChatRequest, id: &str) -> Option<Takeover> {
    let (client, view) = app.inner.nodes.client(id)?;
    let model = view.model_for(asked.model.as_deref())?.to_owned();
    if let Some(tokenizer) = view.tokenizer_of(&model) {
        return Some(Takeover { level: Continuation::Tokens, tokenizer: Some(tokenizer.to_owned()) });
    }
    let pass = || {
        let option = asked.options.iter().find(|option| option.id == id)?;
        may_leave(&asked.policy, &asked.demand, option).ok()
    };
    let known = view.continues(&model);
    let node = Node { app, client: &client, model: &model };
    let rendered = match file_of(asked, &model) {
        Some(entry) => node.renders(entry, request).await.map(|rendered| (entry, rendered)),
        None => None,
    };
    let mut found = known.clone();
    // Both at once: each may wait for a model to be loaded there.
    let text = async {
        let (entry, rendered) = rendered.as_ref()?;
        node.continues_text(entry, rendered, &mut found, pass()?).await.then(|| entry.usable()).flatten()
    };
    let chat = async {
        match known.chat {
            Some(continues) => Some(continues),
            None => client.continues_chat(&model).await,
        }
    };
    let (text, chat) = futures::join!(text, chat);
    found.chat = chat;
    if found != known {
        tracing::info!(node = id, ?found, "how a node goes on with an answer");
        app.inner.nodes.update(id, |view| view.note_continues(&model, found));
    }
    match text {
        Some(header) => Some(Takeover { level: Continuation::Text, tokenizer: Some(header.tokenizer.clone()) }),
        None => (chat == Some(true)).then_some(Takeover { level: Continuation::Prefix, tokenizer: None }),
    }
}

/// The file here of the model that a node calls `model`.
pub(crate) fn file_of<'a>(asked: &'a Asked, model: &str) -> Option<&'a ModelEntry> {
    asked.entry.as_ref().filter(|entry| same_model(model, &entry.id) && entry.usable().is_some())
}

/// A model of a node.
struct Node<'a> {
    app: &'a App,
    client: &'a NodeClient,
    model: &'a str,
}

impl Node<'_> {
    async fn renders(&self, entry: &ModelEntry, request: &ChatRequest) -> Option<RenderedAnswer> {
        let rendered = self.app.inner.engine.rendered(&entry.path, request).await;
        rendered.inspect_err(|why| tracing::info!(%why, "a request can't be rendered for a node")).ok()
    }

    /// Whether it goes on with text, and shows the marks by which an answer like `rendered` is read.
    async fn continues_text(
        &self,
        entry: &ModelEntry,
        rendered: &RenderedAnswer,
        found: &mut Continues,
        pass: EgressPass,
    ) -> bool {
        if found.text.is_none() {
            found.text = match self.renders(entry, &probe_request()).await {
                Some(probe) => self.client.continues_text(pass, self.model, probe.prompt, probe.prompt_tokens).await,
                None => Some(None),
            };
        }
        if found.text.flatten().is_none() {
            return false;
        }
        for (token, name) in &rendered.marks {
            if !found.shown.contains_key(token) {
                let Some(is_shown) = self.client.shows_token(self.model, *token, name).await else { return false };
                found.shown.insert(*token, is_shown);
            }
            if found.shown.get(token) != Some(&true) {
                return false;
            }
        }
        true
    }
}
