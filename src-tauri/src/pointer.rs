//! Whether a mouse button is held anywhere on the screen: a press elsewhere may be the start of a drag to the panel.

use tauri::WebviewWindow;

/// Main thread only, as the toolkits ask. Where the desktop tells a program nothing about the pointer outside its
/// windows (Wayland) the answer is no.
#[cfg(target_os = "linux")]
pub(crate) fn is_pressed(window: &WebviewWindow) -> bool {
    use gtk::gdk::ModifierType;
    use gtk::prelude::{SeatExt, WidgetExt};

    let Some(surface) = window.gtk_window().ok().and_then(|window| window.window()) else { return false };
    let Some(pointer) = surface.display().default_seat().and_then(|seat| seat.pointer()) else { return false };
    let (_, _, _, held) = surface.device_position(&pointer);
    held.intersects(ModifierType::BUTTON1_MASK | ModifierType::BUTTON2_MASK | ModifierType::BUTTON3_MASK)
}

/// `+[NSEvent pressedMouseButtons]`: the buttons held now, wherever the pointer is.
#[cfg(target_os = "macos")]
pub(crate) fn is_pressed(_window: &WebviewWindow) -> bool {
    objc2_app_kit::NSEvent::pressedMouseButtons() != 0
}
