//! `cargo xtask check-deps`: which crate may use which, read from the crates' manifests. Adding an edge to `ALLOWED` is a
//! commit of its own with a reason.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

use crate::workspace::Workspace;

/// Crate, then the crates of this workspace that its ordinary code may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("tidegate-desktop", &["app", "chat", "gateway"]),
    ("cli", &["app", "chat", "gateway"]),
    ("gateway", &["app", "chat", "wire"]),
    ("app", &["chat", "engine", "handoff", "nodes", "routing", "store", "vitals"]),
    ("engine", &["chat", "kernels"]),
    ("handoff", &["chat", "routing"]),
    // For the pass without which nothing is sent to a node.
    ("nodes", &["chat", "routing", "wire"]),
    ("routing", &["chat", "vitals"]),
    ("store", &["chat"]),
    ("vitals", &["chat"]),
    ("wire", &["chat"]),
    ("kernels", &[]),
    ("metal-emulator", &[]),
    ("chat", &[]),
    ("testkit", &["chat", "wire"]),
    ("system-tests", &[]),
    ("xtask", &[]),
];

/// Heavy or defining libraries, and the only crates that may name them.
const HOMES: &[(&str, &[&str])] = &[
    ("axum", &["gateway", "testkit"]),
    ("candle-core", &["engine", "kernels"]),
    ("candle-metal-kernels", &["kernels"]),
    ("candle-nn", &["engine", "kernels"]),
    ("reqwest", &["nodes"]),
    ("rusqlite", &["store"]),
    ("serde", &["app", "cli", "engine", "gateway", "tidegate-desktop", "vitals", "wire", "xtask"]),
    ("specta", &["tidegate-desktop"]),
    ("tauri", &["tidegate-desktop"]),
    ("tokenizers", &["engine"]),
];

/// Dependencies that no source file names, and why they are there.
const UNNAMED: &[(&str, &str)] = &[("getrandom", "turns on a feature of a dependency's dependency")];

/// Checks every manifest. Returns a line that says what was checked.
pub(crate) fn check(workspace: &Workspace) -> Result<String> {
    let manifests = manifests(&workspace.root)?;
    let names: BTreeSet<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
    let mut wrong = Vec::new();
    for manifest in &manifests {
        wrong.extend(wrong_edges(manifest, &names));
        wrong.extend(unused(manifest)?);
    }
    let architecture = workspace.root.join("docs/ARCHITECTURE.md");
    let text = fs::read_to_string(&architecture).context("reading docs/ARCHITECTURE.md")?;
    wrong.extend(unnamed_crates(&text, &names));
    if !wrong.is_empty() {
        bail!("dependencies are not as agreed:\n  {}", wrong.join("\n  "));
    }
    Ok(format!("{} crates, every edge allowed", manifests.len()))
}

/// The crates of this workspace.
pub(crate) fn own_crates() -> impl Iterator<Item = &'static str> {
    ALLOWED.iter().map(|(name, _)| *name)
}

#[derive(Debug)]
struct Manifest {
    name: String,
    folder: PathBuf,
    table: Table,
}

fn manifests(root: &Path) -> Result<Vec<Manifest>> {
    let workspace = read(&root.join("Cargo.toml"))?;
    let members = workspace.get("workspace").and_then(|table| table.get("members")).and_then(Value::as_array);
    members
        .context("the workspace has no members")?
        .iter()
        .filter_map(Value::as_str)
        .map(|member| {
            let folder = root.join(member);
            let table = read(&folder.join("Cargo.toml"))?;
            let name = table.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
            Ok(Manifest { name: name.context("a member has no name")?.to_owned(), folder, table })
        })
        .collect()
}

fn read(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.parse().with_context(|| format!("in {}", path.display()))
}

/// Names under `section`, for all targets.
fn dependencies(table: &Table, section: &str) -> BTreeSet<String> {
    let of = |table: &Table| -> Vec<String> {
        table.get(section).and_then(Value::as_table).map(|names| names.keys().cloned().collect()).unwrap_or_default()
    };
    let targets = table.get("target").and_then(Value::as_table);
    let per_target = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table).flat_map(of);
    of(table).into_iter().chain(per_target).collect()
}

fn wrong_edges(manifest: &Manifest, ours: &BTreeSet<&str>) -> Vec<String> {
    let name = manifest.name.as_str();
    let Some((_, allowed)) = ALLOWED.iter().find(|(from, _)| *from == name) else {
        return vec![format!("{name} is not in xtask's table of allowed edges")];
    };
    let mut wrong = Vec::new();
    for section in ["dependencies", "build-dependencies"] {
        for to in dependencies(&manifest.table, section) {
            if ours.contains(to.as_str()) && !allowed.contains(&to.as_str()) && name != "system-tests" {
                wrong.push(format!("{name} must not use {to}"));
            }
            if let Some((_, homes)) = HOMES.iter().find(|(library, _)| *library == to)
                && !homes.contains(&name)
            {
                wrong.push(format!("{name} must not use {to}, which is for {}", homes.join(" and ")));
            }
        }
    }
    wrong
}

/// Dependencies that no source of the crate names.
fn unused(manifest: &Manifest) -> Result<Vec<String>> {
    let mut sources = String::new();
    append_sources(&manifest.folder, &mut sources)?;
    let words: BTreeSet<&str> = sources.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut wrong = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for dependency in dependencies(&manifest.table, section) {
            let is_named = words.contains(dependency.replace('-', "_").as_str());
            if !is_named && !UNNAMED.iter().any(|(name, _)| *name == dependency) {
                wrong.push(format!("{} does not use {dependency} ({section})", manifest.name));
            }
        }
    }
    Ok(wrong)
}

fn append_sources(folder: &Path, sources: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            append_sources(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn unnamed_crates(architecture: &str, names: &BTreeSet<&str>) -> Vec<String> {
    let missing = names
        .iter()
        .filter(|name| !architecture.contains(&format!("`{name}`")) && !architecture.contains(&format!("**{name}**")));
    missing.map(|name| format!("docs/ARCHITECTURE.md has no `{name}`")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, text: &str) -> Manifest {
        Manifest { name: name.to_owned(), folder: PathBuf::new(), table: text.parse().unwrap() }
    }

    fn check_edges(name: &str, text: &str, expected: &[&str]) {
        let ours = BTreeSet::from(["chat", "engine", "app", "store", "testkit"]);
        assert_eq!(wrong_edges(&manifest(name, text), &ours), expected);
    }

    #[test]
    fn edges_outside_the_table_are_named() {
        check_edges("app", "[dependencies]\nchat = {}\nengine = {}", &[]);
        check_edges("store", "[dependencies]\nengine = {}", &["store must not use engine"]);
        check_edges("chat", "[target.'cfg(unix)'.dependencies]\napp.workspace = true", &["chat must not use app"]);
        check_edges("stranger", "", &["stranger is not in xtask's table of allowed edges"]);
    }

    #[test]
    fn tests_may_use_anything() {
        check_edges("store", "[dev-dependencies]\ntestkit = {}\napp = {}", &[]);
        check_edges("system-tests", "[dependencies]\napp = {}", &[]);
    }

    #[test]
    fn heavy_libraries_have_one_home() {
        check_edges("store", "[dependencies]\nrusqlite = {}", &[]);
        check_edges("app", "[dependencies]\nrusqlite = {}", &["app must not use rusqlite, which is for store"]);
    }

    #[test]
    fn unused_dependencies_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lib.rs"), "use some_thing::X;").unwrap();
        let mut manifest = manifest("app", "[dependencies]\nsome-thing = {}\nother = {}");
        manifest.folder = dir.path().to_owned();
        assert_eq!(unused(&manifest).unwrap(), ["app does not use other (dependencies)"]);
    }

    #[test]
    fn the_architecture_names_every_crate() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let text = fs::read_to_string(root.join("docs/ARCHITECTURE.md")).unwrap();
        let manifests = manifests(root).unwrap();
        let names = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
        assert_eq!(unnamed_crates(&text, &names), Vec::<String>::new());
        assert_eq!(unnamed_crates("`chat` **app**", &BTreeSet::from(["chat", "app", "wire"])).len(), 1);
    }
}
