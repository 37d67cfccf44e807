//! The files that are measured: models as they come, a small one in many quantizations, a mixture of experts. Each is
//! fetched or made where it isn't there yet.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

use super::peer::Peer;
use super::process::said_by;
use super::turn::Part;
use crate::check::cargo;
use crate::setup;
use crate::steps::Steps;
use crate::workspace::Workspace;

/// A file and what is measured with it.
#[derive(Debug)]
pub(super) struct Subject {
    /// As the document calls it.
    pub(super) name: String,
    pub(super) file: PathBuf,
    pub(super) parts: Vec<Part>,
}

/// A file that `--only` can name.
pub(super) struct Known {
    pub(super) name: &'static str,
    origin: Origin,
    pub(super) parts: &'static [Part],
}

#[derive(Clone, Copy)]
enum Origin {
    /// Of models/catalog.toml.
    Catalog(&'static str),
    /// What llama-quantize makes of the small model: the base type, and the type of all matrices where that differs.
    Quantized(&'static str, Option<&'static str>),
    Mixture,
}

/// What is requantized. Its rows are not multiples of 256.
const SMALL: &str = "smollm2-135m-instruct-q4_1";

pub(super) const KNOWN: [Known; 11] = [
    Known::whole("0.5b", "qwen2.5-coder-0.5b-instruct-q4_k_m"),
    Known::whole("1.5b", "qwen2.5-coder-1.5b-instruct-q4_k_m"),
    Known::whole("gemma", "gemma-3-270m-q4_k_m"),
    Known::quantized("q4_0", "Q4_0", None),
    Known::quantized("q4_1", "Q4_1", None),
    Known::quantized("q5_k_m", "Q5_K_M", None),
    Known::quantized("q6_k", "Q6_K", None),
    Known::quantized("q8_0", "Q8_0", None),
    Known::quantized("f16", "F16", None),
    // As a base type it is for experts alone.
    Known::quantized("mxfp4", "Q8_0", Some("mxfp4")),
    Known { name: "moe", origin: Origin::Mixture, parts: &Part::OF_MODEL },
];

impl Known {
    const fn whole(name: &'static str, id: &'static str) -> Self {
        Self { name, origin: Origin::Catalog(id), parts: &Part::ALL }
    }

    const fn quantized(name: &'static str, base: &'static str, matrices: Option<&'static str>) -> Self {
        Self { name, origin: Origin::Quantized(base, matrices), parts: &Part::OF_MODEL }
    }

    /// As the document calls it: its file, without the ending.
    pub(super) fn title(&self) -> String {
        match self.origin {
            Origin::Catalog(id) => id.to_owned(),
            Origin::Quantized(..) => format!("smollm2-135m-{}", self.name),
            Origin::Mixture => "moe-8-of-64-q4_k".to_owned(),
        }
    }

    /// Fetches or makes the file.
    pub(super) fn subject(&self, workspace: &Workspace, peer: &Peer) -> Result<Subject> {
        // Its own steps: what fails here is no reason to leave other files out.
        let mut steps = Steps::new(workspace.notes())?;
        let title = self.title();
        let file = match self.origin {
            Origin::Catalog(id) => setup::model(workspace, &mut steps, id)?,
            Origin::Quantized(base, matrices) => {
                let unpacked = unpacked(workspace, peer, &mut steps)?;
                made(workspace, &mut steps, &title, |new| quantize(peer, &unpacked, new, base, matrices))?
            }
            Origin::Mixture => made(workspace, &mut steps, &title, |new| {
                let example = ["run", "--release", "--package", "testkit", "--example", "moe_model", "--"];
                said_by(cargo().args(example).arg(new)).map(|_| ())
            })?,
        };
        Ok(Subject { name: title, file, parts: self.parts.to_vec() })
    }
}

impl Subject {
    /// What is called as the file is.
    pub(super) fn new(file: PathBuf, parts: &[Part]) -> Self {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, file, parts: parts.to_vec() }
    }
}

/// The small model with 16 bits a weight: what all quantizations are made of. It was quantized before: good for measuring
/// speed, and for nothing else.
fn unpacked(workspace: &Workspace, peer: &Peer, steps: &mut Steps) -> Result<PathBuf> {
    let small = setup::model(workspace, steps, SMALL)?;
    made(workspace, steps, "smollm2-135m-f16", |new| quantize(peer, &small, new, "F16", None))
}

fn quantize(peer: &Peer, source: &Path, new: &Path, base: &str, matrices: Option<&str>) -> Result<()> {
    let mut quantize = peer.command("llama-quantize");
    quantize.arg("--allow-requantize");
    if let Some(matrices) = matrices {
        quantize.args(["--tensor-type", &format!("attn={matrices}")]);
        quantize.args(["--tensor-type", &format!("ffn={matrices}")]);
    }
    said_by(quantize.arg(source).arg(new).arg(base)).map(|_| ())
}

/// The file of this title in the build folder, made where it isn't there yet.
fn made(
    workspace: &Workspace,
    steps: &mut Steps,
    title: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = workspace.target.join("peer/models");
    let file = folder.join(format!("{title}.gguf"));
    if !file.exists() {
        fs::create_dir_all(&folder)?;
        let new = file.with_extension("new");
        steps.work(title, || {
            make(&new)?;
            fs::rename(&new, &file).with_context(|| format!("moving it to {}", file.display()))?;
            Ok("made".to_owned())
        });
        steps.all_passed()?;
    }
    Ok(file)
}
