//! Rare broadcasts. Streams go over a command's channel instead.

use serde::Serialize;
use specta::Type;
use tauri_specta::Event;

use super::conversations::ConversationSummaryDto;
use super::models::ModelDto;
use super::nodes::NodeDto;
use super::programs::ProgramsDto;
use super::settings::SettingsDto;
use super::vitals::VitalsDto;
use crate::frame::View;

/// The newest readings; sent only while the window is visible.
#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct Vitals(pub(crate) VitalsDto);

#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct ModelsChanged(pub(crate) Vec<ModelDto>);

#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct NodesChanged(pub(crate) Vec<NodeDto>);

#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct ConversationsChanged(pub(crate) Vec<ConversationSummaryDto>);

#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct SettingsChanged(pub(crate) SettingsDto);

#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct ProgramsChanged(pub(crate) ProgramsDto);

#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct ViewChanged(pub(crate) View);

/// The menu's Settings was chosen.
#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct OpenSettings;

/// Model files wait to be taken.
#[derive(Debug, Clone, Serialize, Type, Event)]
pub(crate) struct FilesOpened;
