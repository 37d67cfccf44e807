//! Generates Tauri's context, and keeps `cargo check` working in a tree whose interface is not built yet.

use std::path::Path;

const PLACEHOLDER: &str = "<!doctype html><meta charset=\"utf-8\"><title>Tidegate</title>\
<p>The interface is not built. Run <code>make run</code>, or <code>npm run build</code> in <code>ui/</code>, and start again.</p>\n";

fn main() {
    let index = Path::new("../ui/dist/index.html");
    if !index.exists() {
        let written = std::fs::create_dir_all("../ui/dist").and_then(|()| std::fs::write(index, PLACEHOLDER));
        if let Err(error) = written {
            println!("cargo::warning=cannot write a placeholder to ui/dist: {error}");
        }
    }
    // The interface is part of the program: a new one is a new program.
    println!("cargo::rerun-if-changed=../ui/dist/index.html");
    tauri_build::build();
}
