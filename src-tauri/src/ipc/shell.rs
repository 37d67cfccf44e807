//! What belongs to the window itself: the first load, the view, the clipboard, links.

use serde::Serialize;
use specta::Type;
use tauri::{AppHandle, State};
use tauri_plugin_clipboard_manager::ClipboardExt;
use tauri_plugin_opener::OpenerExt;

use super::conversations::ConversationSummaryDto;
use super::error::ErrorDto;
use super::models::ModelDto;
use super::nodes::NodeDto;
use super::programs::ProgramsDto;
use super::settings::SettingsDto;
use crate::Shell;
use crate::frame::View;
use crate::opened::OpenedFiles;
use crate::window;

/// Everything the first picture needs, in one answer.
#[derive(Debug, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BootDto {
    version: String,
    platform: PlatformDto,
    machine: String,
    device: String,
    settings: SettingsDto,
    models: Vec<ModelDto>,
    nodes: Vec<NodeDto>,
    programs: ProgramsDto,
    conversations: Vec<ConversationSummaryDto>,
    /// The draft of the chat that isn't begun yet.
    draft: String,
    /// What to say about the start, once.
    notice: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PlatformDto {
    #[serde(rename = "macos")]
    MacOs,
    Linux,
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn boot(shell: State<'_, Shell>) -> Result<BootDto, ErrorDto> {
    let app = &shell.app;
    Ok(BootDto {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: if cfg!(target_os = "macos") { PlatformDto::MacOs } else { PlatformDto::Linux },
        machine: machine(),
        device: app::device_name(),
        settings: SettingsDto::new(app, app.settings()),
        models: super::models::list(app),
        nodes: super::nodes::list(app),
        programs: shell.programs().into(),
        conversations: super::conversations::list(app),
        draft: app.new_chat_draft().await?,
        notice: app.notice().map(str::to_owned),
    })
}

/// Model files opened from the desktop or named at the start, each told once; they are looked at as dropped ones are.
#[tauri::command]
#[specta::specta]
pub(crate) async fn take_opened_files(opened: State<'_, OpenedFiles>) -> Result<Vec<String>, ErrorDto> {
    Ok(opened.take())
}

/// "Apple M3, 24.0 GB, macOS 26.1".
fn machine() -> String {
    let machine = app::vitals::machine();
    let ram = machine.ram.map(|ram| ram.to_string());
    [Some(machine.chip), ram, Some(machine.os)].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Panel or large window, with the chat in place.
#[tauri::command]
#[specta::specta]
pub(crate) async fn set_view(handle: AppHandle, view: View) -> Result<(), ErrorDto> {
    Ok(window::set_view(&handle, view)?)
}

/// Puts the panel away. Without an icon to bring it back it stays.
#[tauri::command]
#[specta::specta]
pub(crate) async fn hide_panel(handle: AppHandle, shell: State<'_, Shell>) -> Result<(), ErrorDto> {
    if shell.has_tray() {
        window::hide(&handle);
    }
    Ok(())
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn copy_text(handle: AppHandle, text: String) -> Result<(), ErrorDto> {
    handle.clipboard().write_text(text).map_err(ErrorDto::internal)
}

/// Opens a link of an answer in the browser. A model writes links, so only web and mail addresses are followed.
#[tauri::command]
#[specta::specta]
pub(crate) async fn open_url(handle: AppHandle, url: String) -> Result<(), ErrorDto> {
    if !["https://", "http://", "mailto:"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(ErrorDto::bad_request("Only web and mail addresses are opened."));
    }
    handle.opener().open_url(url, None::<&str>).map_err(ErrorDto::internal)
}
