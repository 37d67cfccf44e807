//! Writes the model of `testkit::moe` into a folder: `cargo run -p testkit --example moe_model -- FOLDER`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).unwrap_or_default().into();
    testkit::moe::write_moe_model(&folder).map(|_| ())
}
