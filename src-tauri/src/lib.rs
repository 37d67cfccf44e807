//! The desktop shell: the icon in the menu bar, the one window, and the bridge between the interface and `app`.
//!
//! It parses, calls and presents; what the product does is decided in `app` and below it. Start at [`run`]; commands
//! and their transport types are in `ipc`, the window's manners in `window.rs`.

mod arguments;
mod broadcast;
mod frame;
mod ipc;
mod opened;
mod pointer;
mod programs;
mod replies;
mod tray;
mod window;

use std::error::Error;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use app::{App, AppConfig};
use tauri::{AppHandle, DragDropEvent, Manager, RunEvent, WindowEvent};
use tokio::sync::watch;

pub use arguments::Arguments;

/// Longer than the parts of a shutdown may take together, so that this limit is the last resort.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// What commands and events find in Tauri's state.
struct Shell {
    app: App,
    replies: replies::Replies,
    frame: frame::Frame,
    window: Mutex<window::WindowState>,
    tray: OnceLock<tray::Tray>,
    programs: watch::Receiver<programs::Programs>,
}

impl Shell {
    fn tray(&self) -> Option<&tray::Tray> {
        self.tray.get()
    }

    fn programs(&self) -> programs::Programs {
        self.programs.borrow().clone()
    }

    fn has_tray(&self) -> bool {
        self.tray.get().is_some()
    }
}

/// Runs the app until it is quit.
///
/// # Errors
/// Where the data folder can't be used, or the desktop has no place for a window.
pub fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let bridge = ipc::builder();
    let commands = bridge.invoke_handler();
    tauri::Builder::default()
        .manage(opened::OpenedFiles::default())
        .plugin(tauri_plugin_single_instance::init(|handle, argv, folder| {
            window::show(handle, None);
            opened::open(handle, Arguments::files_of(&argv, Path::new(&folder)));
        }))
        .plugin(tauri_plugin_clipboard_manager::init())
        .plugin(tauri_plugin_dialog::init())
        .plugin(tauri_plugin_opener::init())
        .invoke_handler(commands)
        .on_window_event(|window, event| window_event(window.app_handle(), event))
        .setup(move |tauri| {
            bridge.mount_events(tauri);
            set_up(tauri.handle(), arguments)
        })
        .build(tauri::generate_context!())?
        .run(|handle, event| run_event(handle, &event));
    Ok(())
}

fn set_up(handle: &AppHandle, arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let data_dir =
        arguments.data.or_else(app::default_data_dir).ok_or("there is no home folder; name one with --data")?;
    let config = AppConfig { data_dir: data_dir.clone(), models_dirs: arguments.models_dirs, ..AppConfig::default() };
    let app = tauri::async_runtime::block_on(App::start(config))?;
    let drawn = tray::is_drawn();
    let view = if arguments.show || !drawn { frame::View::Window } else { frame::View::Panel };
    let settings = app.settings();
    handle.manage(Shell {
        app: app.clone(),
        replies: replies::Replies::default(),
        frame: frame::Frame::open(&data_dir),
        window: window::WindowState::new(view),
        tray: OnceLock::new(),
        programs: programs::start(&app),
    });
    if drawn {
        let tray = tray::Tray::create(handle, settings.offload.into())?;
        // Set once, here.
        let _ = handle.state::<Shell>().tray.set(tray);
    }
    app.set_visible(false);
    window::create(handle)?;
    if view == frame::View::Window {
        window::show(handle, None);
    }
    broadcast::start(handle, &app);
    end_on_signals(handle);
    opened::open(handle, arguments.files);
    Ok(())
}

/// Logging out and `kill` are asking to quit, not crashes.
fn end_on_signals(handle: &AppHandle) {
    let handle = handle.clone();
    tauri::async_runtime::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return tracing::warn!("signals are not listened to");
        };
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        handle.exit(0);
    });
}

fn window_event(handle: &AppHandle, event: &WindowEvent) {
    match event {
        // Closing puts the window away while an icon can bring it back.
        WindowEvent::CloseRequested { api, .. } if handle.state::<Shell>().has_tray() => {
            api.prevent_close();
            window::hide(handle);
        }
        WindowEvent::CloseRequested { .. } => window::remember_size(handle),
        WindowEvent::Focused(true) => window::focused(handle),
        WindowEvent::Focused(false) => window::blurred(handle),
        WindowEvent::DragDrop(DragDropEvent::Drop { .. }) => window::dropped_on(handle),
        _ => {}
    }
}

fn run_event(handle: &AppHandle, event: &RunEvent) {
    match event {
        #[cfg(target_os = "macos")]
        RunEvent::Opened { urls } => {
            window::show(handle, None);
            opened::open(handle, urls.iter().filter_map(|url| url.to_file_path().ok()).collect());
        }
        #[cfg(target_os = "macos")]
        RunEvent::Reopen { .. } => window::show(handle, None),
        // The one place where the app ends, however it was asked to.
        RunEvent::Exit => {
            let app = handle.state::<Shell>().app.clone();
            window::remember_size(handle);
            let ended =
                tauri::async_runtime::block_on(async { tokio::time::timeout(SHUTDOWN_LIMIT, app.shutdown()).await });
            if ended.is_err() {
                tracing::warn!("the app did not end in time");
            }
        }
        _ => {}
    }
}
