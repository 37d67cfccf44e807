//! Tells the interface and the icon what changed in `app`, for as long as the app runs.

use std::sync::Arc;

use app::vitals::MemoryPressure;
use app::{App, Vitals};
use tauri::{AppHandle, Manager};
use tauri_specta::Event;
use tokio::sync::watch::Receiver;

use crate::Shell;
use crate::ipc::{conversations, events, models, nodes, settings::SettingsDto};
use crate::tray::Shape;
use crate::window;

/// Starts one task for each thing that changes. They end with their channels, when `app` is dropped.
pub(crate) fn start(handle: &AppHandle, app: &App) {
    each(handle, app.watch_vitals(), |handle, vitals| {
        show_state(handle, &vitals);
        if window::is_visible(handle) { events::Vitals(vitals.as_ref().into()).emit(handle) } else { Ok(()) }
    });
    each(handle, app.watch_models(), |handle, _| events::ModelsChanged(models::list(app_of(handle))).emit(handle));
    each(handle, app.watch_nodes(), |handle, _| events::NodesChanged(nodes::list(app_of(handle))).emit(handle));
    each(handle, app.watch_conversations(), |handle, _| {
        events::ConversationsChanged(conversations::list(app_of(handle))).emit(handle)
    });
    each(handle, app.watch_settings(), |handle, settings| {
        if let Some(tray) = handle.state::<Shell>().tray() {
            tray.mark(settings.offload.into());
        }
        events::SettingsChanged(SettingsDto::new(app_of(handle), settings)).emit(handle)
    });
    let programs = handle.state::<Shell>().programs.clone();
    each(handle, programs, |handle, programs| events::ProgramsChanged(programs.into()).emit(handle));
}

fn app_of(handle: &AppHandle) -> &App {
    &handle.state::<Shell>().inner().app
}

fn each<T: Clone + Send + Sync + 'static>(
    handle: &AppHandle,
    mut changes: Receiver<T>,
    tell: impl Fn(&AppHandle, T) -> tauri::Result<()> + Send + 'static,
) {
    let handle = handle.clone();
    tauri::async_runtime::spawn(async move {
        while changes.changed().await.is_ok() {
            let value = changes.borrow_and_update().clone();
            window::log("tell the interface", tell(&handle, value));
        }
    });
}

/// The icon's shape follows what is happening now: an answer on a node, then pressure, then the end of the last answer.
fn show_state(handle: &AppHandle, vitals: &Arc<Vitals>) {
    let shell = handle.state::<Shell>();
    let Some(tray) = shell.tray() else { return };
    let pressed = vitals.snapshot.pressure.is_some_and(|pressure| pressure > MemoryPressure::Normal);
    tray.show(match shell.replies.outlook() {
        crate::replies::Outlook::OnNode => Shape::Offloaded,
        _ if pressed => Shape::Near,
        crate::replies::Outlook::Failed => Shape::Trouble,
        crate::replies::Outlook::Calm => Shape::Calm,
    });
}
