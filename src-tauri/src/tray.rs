//! The icon in the menu bar: a click toggles the panel, a right click opens the menu. Its shape tells the state.

use tauri::image::Image;
use tauri::menu::{CheckMenuItem, Menu, MenuEvent, MenuItem, PredefinedMenuItem, Submenu};
use tauri::tray::{MouseButton, MouseButtonState, TrayIcon, TrayIconBuilder, TrayIconEvent};
use tauri::{AppHandle, Wry};
use tauri_specta::Event;

use crate::ipc::events::OpenSettings;
use crate::ipc::settings::OffloadDto;
use crate::window;

const MODES: [(OffloadDto, &str, &str); 3] = [
    (OffloadDto::LocalOnly, "offload-local", "Local only"),
    (OffloadDto::Auto, "offload-auto", "Auto"),
    (OffloadDto::Remote, "offload-remote", "Remote"),
];

/// The icon and the menu items whose marks change.
pub(crate) struct Tray {
    icon: TrayIcon,
    modes: Vec<(OffloadDto, CheckMenuItem<Wry>)>,
    shape: std::sync::Mutex<Shape>,
}

/// What the icon shows; the names are those of the files in `assets/tray`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Calm,
    Near,
    Offloaded,
    Trouble,
}

impl Shape {
    fn image(self) -> Image<'static> {
        match self {
            Self::Calm => tauri::include_image!("../assets/tray/calm@2x.png"),
            Self::Near => tauri::include_image!("../assets/tray/near@2x.png"),
            Self::Offloaded => tauri::include_image!("../assets/tray/offloaded@2x.png"),
            Self::Trouble => tauri::include_image!("../assets/tray/trouble@2x.png"),
        }
    }

    fn tooltip(self) -> &'static str {
        match self {
            Self::Calm => "Tidegate",
            Self::Near => "Tidegate: memory is under pressure",
            Self::Offloaded => "Tidegate: answering on a node",
            Self::Trouble => "Tidegate: the last answer failed",
        }
    }
}

impl Tray {
    pub(crate) fn create(handle: &AppHandle, offload: OffloadDto) -> tauri::Result<Self> {
        let modes = MODES
            .iter()
            .map(|&(mode, id, label)| {
                Ok((mode, CheckMenuItem::with_id(handle, id, label, true, mode == offload, None::<&str>)?))
            })
            .collect::<tauri::Result<Vec<_>>>()?;
        let submenu = Submenu::with_id(handle, "offload", "Offload", true)?;
        for (_, item) in &modes {
            submenu.append(item)?;
        }
        let menu = Menu::with_items(
            handle,
            &[
                &MenuItem::with_id(handle, "open", "Open Tidegate", true, None::<&str>)?,
                &submenu,
                &PredefinedMenuItem::separator(handle)?,
                &MenuItem::with_id(handle, "settings", "Settings…", true, Some("CmdOrCtrl+,"))?,
                &MenuItem::with_id(handle, "quit", "Quit Tidegate", true, Some("CmdOrCtrl+Q"))?,
            ],
        )?;
        let icon = TrayIconBuilder::with_id("tidegate")
            .icon(Shape::Calm.image())
            .icon_as_template(true)
            .tooltip(Shape::Calm.tooltip())
            .menu(&menu)
            .show_menu_on_left_click(false)
            .on_tray_icon_event(|tray, event| clicked(tray.app_handle(), &event))
            .on_menu_event(|handle, event| chosen(handle, &event))
            .build(handle)?;
        Ok(Self { icon, modes, shape: std::sync::Mutex::new(Shape::Calm) })
    }

    /// Moves the mark in the Offload menu.
    pub(crate) fn mark(&self, offload: OffloadDto) {
        for (mode, item) in &self.modes {
            window::log("mark the offload mode", item.set_checked(*mode == offload));
        }
    }

    /// Changes the icon, if it is another one.
    pub(crate) fn show(&self, shape: Shape) {
        let mut now = self.shape.lock().expect("no panic while the shape is held");
        if *now != shape {
            *now = shape;
            let changed = self.icon.set_icon_with_as_template(Some(shape.image()), true);
            window::log("change the icon", changed.and_then(|()| self.icon.set_tooltip(Some(shape.tooltip()))));
        }
    }
}

fn clicked(handle: &AppHandle, event: &TrayIconEvent) {
    if let TrayIconEvent::Click { rect, button: MouseButton::Left, button_state: MouseButtonState::Up, .. } = event {
        window::toggle(handle, Some(*rect));
    }
}

fn chosen(handle: &AppHandle, event: &MenuEvent) {
    let id = event.id().as_ref();
    match id {
        "open" => window::show(handle, None),
        "settings" => {
            window::show(handle, None);
            window::log("open the settings", OpenSettings.emit(handle));
        }
        "quit" => handle.exit(0),
        _ => {
            if let Some((mode, ..)) = MODES.iter().find(|(_, mode, _)| *mode == id) {
                crate::ipc::settings::choose_offload(handle, *mode);
            }
        }
    }
}

/// Whether something draws tray icons here. Always on macOS; on Linux a desktop may have nothing that does, and an icon
/// nobody draws must not be the only way to the window.
pub(crate) fn is_drawn() -> bool {
    #[cfg(target_os = "linux")]
    {
        let hosted = || -> zbus::Result<bool> {
            let bus = zbus::blocking::Connection::session()?;
            let watcher = "org.kde.StatusNotifierWatcher".try_into()?;
            Ok(zbus::blocking::fdo::DBusProxy::new(&bus)?.name_has_owner(watcher)?)
        };
        hosted().unwrap_or(false)
    }
    #[cfg(not(target_os = "linux"))]
    true
}
