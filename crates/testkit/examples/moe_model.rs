//! Writes the model of `testkit::moe`: `cargo run --release --package testkit --example moe_model -- FILE`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let file: PathBuf = std::env::args_os().nth(1).unwrap_or_default().into();
    testkit::moe::write_moe_model(&file)
}
