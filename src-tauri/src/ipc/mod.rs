//! The bridge to the interface: every command and event, and the TypeScript that is generated from them.
//!
//! A command converts, calls `app` and converts back. Its transport types (`…Dto`) live beside it.

pub(crate) mod calibration;
pub(crate) mod chat;
pub(crate) mod conversations;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod history;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod programs;
pub(crate) mod settings;
pub(crate) mod shell;
pub(crate) mod vitals;

use tauri_specta::{Builder, ErrorHandlingMode, collect_commands, collect_events};

/// Every command and event of the shell.
pub(crate) fn builder() -> Builder<tauri::Wry> {
    Builder::<tauri::Wry>::new()
        .commands(collect_commands![
            shell::boot,
            shell::take_opened_files,
            chat::send_message,
            chat::stop_reply,
            chat::move_answer,
            conversations::list_conversations,
            conversations::open_conversation,
            conversations::rename_conversation,
            conversations::delete_conversation,
            conversations::set_stays_local,
            conversations::save_draft,
            history::list_decisions,
            history::clear_decisions,
            models::inspect_files,
            models::add_model,
            models::remove_model,
            models::choose_model_file,
            settings::save_settings,
            nodes::add_node,
            nodes::remove_node,
            nodes::probe_node,
            nodes::set_node_trust,
            vitals::vitals_history,
            calibration::calibration,
            calibration::calibrate,
            shell::copy_text,
            shell::open_url,
            shell::set_view,
            shell::hide_panel,
        ])
        .events(collect_events![
            events::Vitals,
            events::ModelsChanged,
            events::NodesChanged,
            events::ConversationsChanged,
            events::SettingsChanged,
            events::ProgramsChanged,
            events::ViewChanged,
            events::OpenSettings,
            events::FilesOpened,
        ])
        .error_handling(ErrorHandlingMode::Throw)
        // Bytes and milliseconds stay far below 2⁵³, up to which a JavaScript number is exact.
        .dangerously_cast_bigints_to_number()
        .disable_serde_phases()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The committed bindings are what this code generates. `UPDATE_BINDINGS=1` writes them anew.
    #[test]
    fn the_bindings_are_up_to_date() {
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ui/src/ipc/bindings.gen.ts");
        let folder = tempfile::tempdir().unwrap();
        let generated = folder.path().join("bindings.gen.ts");
        super::builder().export(specta_typescript::Typescript::default(), &generated).unwrap();
        if std::env::var_os("UPDATE_BINDINGS").is_some() {
            std::fs::copy(&generated, &committed).unwrap();
        }
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(&committed), read(&generated), "run UPDATE_BINDINGS=1 cargo test -p tidegate-desktop");
    }
}
