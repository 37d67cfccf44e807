//! Nodes: the list, adding by address, removing, probing.

use app::{App, NodeState, NodeView, Trust};
use serde::{Deserialize, Serialize};
use specta::Type;
use specta_typescript::Number;
use tauri::State;

use super::error::ErrorDto;
use crate::Shell;

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeDto {
    id: String,
    name: String,
    url: String,
    has_key: bool,
    trust: TrustDto,
    state: NodeStateDto,
    sentence: Option<String>,
    engine: Option<String>,
    models: Vec<String>,
    #[specta(type = Option<Number>)]
    round_trip_ms: Option<f64>,
    #[specta(type = Option<Number>)]
    decode_tokens_per_sec: Option<f64>,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum NodeStateDto {
    Unknown,
    Ready,
    Unreachable,
    Unauthorized,
    NotANode,
}

/// Whose machine a node is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum TrustDto {
    Own,
    Team,
    Rented,
}

pub(crate) fn list(app: &App) -> Vec<NodeDto> {
    app.nodes().into_iter().map(Into::into).collect()
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn add_node(shell: State<'_, Shell>, url: String, key: Option<String>) -> Result<NodeDto, ErrorDto> {
    Ok(shell.app.add_node(&url, key).await?.into())
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn remove_node(shell: State<'_, Shell>, id: String) -> Result<(), ErrorDto> {
    Ok(shell.app.remove_node(&id).await?)
}

/// Asks the node again what it is and has.
#[tauri::command]
#[specta::specta]
pub(crate) async fn probe_node(shell: State<'_, Shell>, id: String) -> Result<NodeDto, ErrorDto> {
    Ok(shell.app.probe_node(&id).await?.into())
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn set_node_trust(shell: State<'_, Shell>, id: String, trust: TrustDto) -> Result<(), ErrorDto> {
    Ok(shell.app.set_node_trust(&id, trust.into()).await?)
}

impl From<Trust> for TrustDto {
    fn from(trust: Trust) -> Self {
        match trust {
            Trust::Own => Self::Own,
            Trust::Team => Self::Team,
            Trust::Rented => Self::Rented,
        }
    }
}

impl From<TrustDto> for Trust {
    fn from(trust: TrustDto) -> Self {
        match trust {
            TrustDto::Own => Self::Own,
            TrustDto::Team => Self::Team,
            TrustDto::Rented => Self::Rented,
        }
    }
}

impl From<NodeView> for NodeDto {
    fn from(node: NodeView) -> Self {
        let (state, sentence) = match node.status.as_ref().map(|status| &status.state) {
            None => (NodeStateDto::Unknown, None),
            Some(NodeState::Ready) => (NodeStateDto::Ready, None),
            Some(NodeState::Unreachable(sentence)) => (NodeStateDto::Unreachable, Some(sentence.clone())),
            Some(NodeState::Unauthorized) => (NodeStateDto::Unauthorized, None),
            Some(NodeState::NotANode(sentence)) => (NodeStateDto::NotANode, Some(sentence.clone())),
        };
        let (engine, models, round_trip) =
            node.status.map(|status| (status.engine, status.models, status.round_trip)).unwrap_or_default();
        Self {
            id: node.id,
            name: node.name,
            url: node.url,
            has_key: node.has_key,
            trust: node.trust.into(),
            state,
            sentence,
            engine,
            models,
            round_trip_ms: round_trip.map(|time| time.as_secs_f64() * 1e3),
            decode_tokens_per_sec: node.decode_tokens_per_sec,
        }
    }
}
