//! The one window: panel under the icon, or large window. Shown, hidden, placed and reshaped here and nowhere else.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tauri::{AppHandle, LogicalSize, Manager, PhysicalPosition, Rect, WebviewUrl, WebviewWindow, WebviewWindowBuilder};
use tauri_specta::Event;

use crate::Shell;
use crate::frame::{Size, View};
use crate::ipc::events::ViewChanged;
use crate::pointer;

const LABEL: &str = "main";

/// A click on the icon takes the focus from the panel before it arrives as a click. Within this time it belongs to the
/// blur that already hid the panel, and a blur belongs to the click that just showed it. Without it the panel flickers.
const LATCH: Duration = Duration::from_millis(250);

/// How often a held mouse button is looked at, and how long after its release a drop may still be told.
const HELD_POLL: Duration = Duration::from_millis(50);
const DROP_DELAY: Duration = Duration::from_millis(300);

/// Space between the icon and the panel, and between the panel and the screen's edge, in physical pixels.
const GAP: f64 = 6.0;

/// How the window stands now.
pub(crate) struct WindowState {
    view: View,
    shown_at: Option<Instant>,
    blurred_at: Option<Instant>,
    /// Open native dialogs take the focus without being a reason to hide.
    dialogs: usize,
}

impl WindowState {
    pub(crate) fn new(view: View) -> Mutex<Self> {
        Mutex::new(Self { view, shown_at: None, blurred_at: None, dialogs: 0 })
    }
}

fn state(handle: &AppHandle) -> std::sync::MutexGuard<'_, WindowState> {
    let shell: &Shell = handle.state::<Shell>().inner();
    shell.window.lock().expect("no panic while the window's state is held")
}

fn get(handle: &AppHandle) -> Option<WebviewWindow> {
    handle.get_webview_window(LABEL)
}

/// Makes the window, hidden, in the view it starts with.
pub(crate) fn create(handle: &AppHandle) -> tauri::Result<()> {
    let view = state(handle).view;
    let builder = WebviewWindowBuilder::new(handle, LABEL, WebviewUrl::App("index.html".into()))
        .title("Tidegate")
        .visible(false)
        .on_navigation(|url| matches!(url.scheme(), "tauri" | "http" | "https") && is_own(url));
    #[cfg(target_os = "macos")]
    let builder = {
        use tauri::window::{Effect, EffectState, EffectsBuilder};
        let effects =
            EffectsBuilder::new().effect(Effect::Popover).state(EffectState::FollowsWindowActiveState).radius(10.0);
        builder.transparent(true).effects(effects.build())
    };
    let window = builder.build()?;
    shape(handle, &window, view)
}

/// The interface's own pages are served from `tauri://localhost` (macOS, Linux) and nothing else is ever shown.
fn is_own(url: &tauri::Url) -> bool {
    matches!(url.host_str(), Some("localhost" | "tauri.localhost"))
}

fn shape(handle: &AppHandle, window: &WebviewWindow, view: View) -> tauri::Result<()> {
    let panel = view == View::Panel;
    let size = handle.state::<Shell>().frame.size(view);
    let least = view.smallest();
    window.set_min_size(Some(LogicalSize::new(least.width, least.height)))?;
    window.set_decorations(!panel)?;
    window.set_always_on_top(panel)?;
    window.set_skip_taskbar(panel)?;
    window.set_size(LogicalSize::new(size.width, size.height))?;
    #[cfg(target_os = "macos")]
    handle.set_activation_policy(match view {
        View::Panel => tauri::ActivationPolicy::Accessory,
        View::Window => tauri::ActivationPolicy::Regular,
    })?;
    Ok(())
}

pub(crate) fn is_visible(handle: &AppHandle) -> bool {
    get(handle).is_some_and(|window| window.is_visible().unwrap_or(false) && !window.is_minimized().unwrap_or(false))
}

/// Shows the window as it was left, the panel under `icon` where the desktop told where that is.
pub(crate) fn show(handle: &AppHandle, icon: Option<Rect>) {
    let Some(window) = get(handle) else { return };
    let view = {
        let mut state = state(handle);
        state.shown_at = Some(Instant::now());
        state.view
    };
    let placed = if view == View::Panel { place(handle, &window, view, icon) } else { Ok(()) };
    let shown =
        placed.and_then(|()| window.show()).and_then(|()| window.unminimize()).and_then(|()| window.set_focus());
    log("show the window", shown);
    handle.state::<Shell>().app.set_visible(true);
}

pub(crate) fn hide(handle: &AppHandle) {
    let Some(window) = get(handle) else { return };
    remember_size(handle);
    log("hide the window", window.hide());
    handle.state::<Shell>().app.set_visible(false);
}

/// A click on the icon.
pub(crate) fn toggle(handle: &AppHandle, icon: Option<Rect>) {
    let just_blurred = state(handle).blurred_at.take().is_some_and(|at| at.elapsed() < LATCH);
    if is_visible(handle) {
        hide(handle);
    } else if !just_blurred {
        show(handle, icon);
    }
}

/// The window came to the front, perhaps from where it was minimized to.
pub(crate) fn focused(handle: &AppHandle) {
    handle.state::<Shell>().app.set_visible(true);
}

/// The focus went elsewhere: a panel gets out of the way, unless that is our own doing. While a mouse button is held it
/// waits, because the press that took the focus may be the start of a drag to here.
pub(crate) fn blurred(handle: &AppHandle) {
    if get(handle).is_some_and(|window| window.is_minimized().unwrap_or(false)) {
        handle.state::<Shell>().app.set_visible(false);
    }
    if !handle.state::<Shell>().has_tray() {
        return;
    }
    {
        let state = state(handle);
        let just_shown = state.shown_at.is_some_and(|at| at.elapsed() < LATCH);
        if state.view != View::Panel || state.dialogs > 0 || just_shown {
            return;
        }
    }
    let handle = handle.clone();
    let blurred_at = Instant::now();
    tauri::async_runtime::spawn(async move {
        if on_main(&handle, held).await {
            while on_main(&handle, held).await {
                tokio::time::sleep(HELD_POLL).await;
            }
            tokio::time::sleep(DROP_DELAY).await;
        }
        on_main(&handle, move |handle| hide_blurred(handle, blurred_at)).await;
    });
}

fn held(handle: &AppHandle) -> bool {
    get(handle).is_some_and(|window| pointer::is_pressed(&window))
}

/// Hides the panel that lost the focus at `blurred_at`, unless it was shown, used or dropped on since.
fn hide_blurred(handle: &AppHandle, blurred_at: Instant) {
    if !is_visible(handle) || get(handle).is_some_and(|window| window.is_focused().unwrap_or(false)) {
        return;
    }
    {
        let mut state = state(handle);
        let used = state.shown_at.is_some_and(|at| at >= blurred_at);
        if used || state.view != View::Panel || state.dialogs > 0 {
            return;
        }
        state.blurred_at = Some(Instant::now());
    }
    hide(handle);
}

/// Runs `task` on the main thread and waits for what it answers; the default where the app is ending.
async fn on_main<T: Default + Send + 'static>(
    handle: &AppHandle,
    task: impl FnOnce(&AppHandle) -> T + Send + 'static,
) -> T {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let on = handle.clone();
    let posted = handle.run_on_main_thread(move || {
        // Nobody waits any more when the app is ending.
        let _ = answer.send(task(&on));
    });
    if posted.is_err() { T::default() } else { answered.await.unwrap_or_default() }
}

/// A file was dropped on the window: who did that wants to see what comes of it.
pub(crate) fn dropped_on(handle: &AppHandle) {
    state(handle).shown_at = Some(Instant::now());
    if let Some(window) = get(handle) {
        log("focus the window", window.set_focus());
    }
}

/// Turns panel into window or back, with the chat in place.
pub(crate) fn set_view(handle: &AppHandle, view: View) -> tauri::Result<()> {
    let Some(window) = get(handle) else { return Ok(()) };
    remember_size(handle);
    {
        let mut state = state(handle);
        state.view = view;
        state.shown_at = Some(Instant::now());
    }
    shape(handle, &window, view)?;
    place(handle, &window, view, None)?;
    window.set_focus()?;
    ViewChanged(view).emit(handle)
}

pub(crate) fn view(handle: &AppHandle) -> View {
    state(handle).view
}

/// Keeps the panel open while `dialog` has the focus.
pub(crate) async fn while_dialog<T>(handle: &AppHandle, dialog: impl Future<Output = T>) -> T {
    state(handle).dialogs += 1;
    let answer = dialog.await;
    {
        let mut state = state(handle);
        state.dialogs -= 1;
        state.shown_at = Some(Instant::now());
    }
    answer
}

pub(crate) fn remember_size(handle: &AppHandle) {
    let Some(window) = get(handle) else { return };
    let (Ok(size), Ok(scale), Ok(false)) = (window.inner_size(), window.scale_factor(), window.is_maximized()) else {
        return;
    };
    let size = size.to_logical::<f64>(scale);
    handle.state::<Shell>().frame.remember(view(handle), Size { width: size.width, height: size.height });
}

/// The panel under the icon, or at the top right of the main screen where the desktop doesn't say where the icon is; the
/// large window in the middle. Reckoned with the size that was asked for: the window has it a moment later only.
fn place(handle: &AppHandle, window: &WebviewWindow, view: View, icon: Option<Rect>) -> tauri::Result<()> {
    let scale = window.scale_factor()?;
    let icon = icon.map(|icon| (icon.position.to_physical::<f64>(scale), icon.size.to_physical::<f64>(scale)));
    let screen = match icon {
        Some((at, _)) => window.monitor_from_point(at.x, at.y)?.or(window.primary_monitor()?),
        None => window.primary_monitor()?,
    };
    let Some(screen) = screen else { return Ok(()) };
    let area = screen.work_area();
    let (left, top) = (f64::from(area.position.x), f64::from(area.position.y));
    let (right, bottom) = (left + f64::from(area.size.width), top + f64::from(area.size.height));
    let size = handle.state::<Shell>().frame.size(view);
    let (width, height) = (size.width * scale, size.height * scale);
    let (x, y) = match (view, icon) {
        (View::Window, _) => ((left + right - width) / 2.0, (top + bottom - height) / 2.0),
        (View::Panel, Some((at, size))) => (at.x + size.width / 2.0 - width / 2.0, at.y + size.height + GAP),
        (View::Panel, None) => (right - width - GAP, top + GAP),
    };
    let x = x.clamp(left + GAP, (right - width - GAP).max(left + GAP));
    window.set_position(PhysicalPosition::new(x.round(), y.max(top).round()))
}

pub(crate) fn log(what: &str, result: tauri::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot {what}");
    }
}
