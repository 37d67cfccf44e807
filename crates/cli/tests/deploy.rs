//! What `deploy/` installs: into a folder, with programs in place of the system's own that note how they are called.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file)
}

/// A machine of its own in a folder.
struct Machine {
    folder: tempfile::TempDir,
    system: &'static str,
}

impl Machine {
    fn new(system: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let calls = folder.path().join("calls");
        let note = format!("#!/bin/sh\necho \"$(basename \"$0\") $*\" >> '{}'\n", calls.display());
        for (name, text) in
            [("uname", format!("#!/bin/sh\necho {system}\n")), ("systemctl", note.clone()), ("launchctl", note)]
        {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { folder, system }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("root").join(path)
    }

    fn install(&self, arguments: &[&str]) -> Output {
        let bin = self.folder.path().join("bin").display().to_string();
        Command::new("sh")
            .arg(deploy("install.sh"))
            .args(arguments)
            .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()))
            .env("DESTDIR", self.path(""))
            .env("SUDO_USER", "somebody")
            .output()
            .unwrap()
    }

    /// What the system's programs were called with since the last time.
    fn calls(&self) -> Vec<String> {
        let path = self.folder.path().join("calls");
        let calls = fs::read_to_string(&path).unwrap_or_default();
        // There may have been none.
        let _ = fs::remove_file(path);
        calls.lines().map(|line| line.replace(&self.path("").display().to_string(), "/")).collect()
    }

    fn service(&self) -> PathBuf {
        self.path(match self.system {
            "Darwin" => "Library/LaunchDaemons/app.tidegate.serve.plist",
            _ => "etc/systemd/system/tidegate.service",
        })
    }

    fn config(&self) -> PathBuf {
        self.path(if self.system == "Darwin" { "usr/local/etc" } else { "etc" }).join("tidegate/tidegate.toml")
    }
}

#[test]
fn a_service_is_installed_updated_and_removed() {
    for (system, started, stopped) in [
        (
            "Linux",
            ["systemctl daemon-reload", "systemctl enable tidegate.service", "systemctl restart tidegate.service"]
                .as_slice(),
            ["systemctl disable --now tidegate.service", "systemctl daemon-reload"].as_slice(),
        ),
        (
            "Darwin",
            &[
                "launchctl bootout system/app.tidegate.serve",
                "launchctl bootstrap system //Library/LaunchDaemons/app.tidegate.serve.plist",
            ],
            &["launchctl bootout system/app.tidegate.serve"],
        ),
    ] {
        let machine = Machine::new(system);
        let binary = machine.folder.path().join("built");
        fs::write(&binary, "one").unwrap();
        let install = |arguments: &[&str]| {
            let output = machine.install(arguments);
            assert!(output.status.success(), "{system}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let from_built = ["--binary", binary.to_str().unwrap()];
        install(&from_built);
        assert_eq!(machine.calls(), started, "{system}");
        let program = machine.path("usr/local/bin/tidegate");
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(machine.service().exists() && !fs::read_to_string(machine.config()).unwrap().contains('@'));

        // Again, with another program and what the user changed.
        fs::write(&binary, "two").unwrap();
        fs::write(machine.config(), "slots = 2\n").unwrap();
        install(&from_built);
        assert_eq!(machine.calls(), started, "{system}");
        assert_eq!(fs::read(&program).unwrap(), b"two");
        assert_eq!(fs::read_to_string(machine.config()).unwrap(), "slots = 2\n");

        for _ in 0..2 {
            install(&["--uninstall"]);
            assert_eq!(machine.calls(), stopped, "{system}");
            assert!(!program.exists() && !machine.service().exists() && machine.config().exists());
        }
        install(&["--uninstall", "--purge"]);
        assert!(!machine.config().parent().unwrap().exists());
    }
}

#[test]
fn what_cannot_be_installed_is_told_and_nothing_is_left() {
    for (system, arguments, code, word) in [
        ("Linux", ["--binary", "/nowhere/tidegate"], 1, "--binary"),
        ("Plan9", ["--no-start", "--no-start"], 1, "Plan9"),
        ("Linux", ["--no-start", "--frobnicate"], 2, "usage"),
        ("Linux", ["--no-start", "--purge"], 1, "--uninstall"),
    ] {
        let machine = Machine::new(system);
        let output = machine.install(&arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && told.contains(word), "{arguments:?}: {told}");
        assert!(machine.calls().is_empty() && !machine.path("").exists(), "{arguments:?}");
    }
}

/// The program is started with the file that was installed, where the service would. Nobody reads what it says after its
/// first line: it goes on, and ends as it should.
#[test]
fn the_installed_program_serves_by_the_installed_file() {
    let machine = Machine::new("Linux");
    assert!(machine.install(&["--no-start", "--binary", TIDEGATE]).status.success());
    assert!(machine.calls().is_empty());
    let mut child = Command::new(machine.path("usr/local/bin/tidegate"))
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(machine.config())
        .arg("--data")
        .arg(machine.path("var/lib/tidegate"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = said.next().unwrap().unwrap();
    assert!(line.starts_with("listening on "), "{line}");
    drop(said);
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}

#[test]
fn launchd_gets_a_list_of_properties_that_starts_what_is_installed() {
    let machine = Machine::new("Darwin");
    assert!(machine.install(&["--no-start", "--binary", TIDEGATE]).status.success());
    let list = plist::Value::from_file(machine.service()).unwrap().into_dictionary().unwrap();
    let text = |key: &str| list[key].as_string().unwrap().to_owned();
    assert_eq!((text("Label").as_str(), text("UserName").as_str()), ("app.tidegate.serve", "somebody"));
    let arguments = list["ProgramArguments"].as_array().unwrap();
    let arguments: Vec<&str> = arguments.iter().map(|it| it.as_string().unwrap()).collect();
    let [program, "serve", "--config", config] = arguments[..] else { panic!("{arguments:?}") };
    assert!(machine.path(program.trim_start_matches('/')).exists());
    assert_eq!(machine.path(config.trim_start_matches('/')), machine.config());
    assert!(machine.path(text("WorkingDirectory").trim_start_matches('/')).is_dir());
    let config = fs::read_to_string(machine.config()).unwrap();
    assert!(config.contains("\nfile = \"/usr/local/var/tidegate/tidegate.log\"\n"), "{config}");
}

/// Checked with the system's own tools, where they are.
#[test]
fn the_unit_and_the_script_have_no_mistakes() {
    let script = deploy("install.sh");
    assert!(Command::new("sh").arg("-n").arg(&script).status().unwrap().success());
    if let Ok(checked) = Command::new("shellcheck").arg(&script).output() {
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
    let unit = fs::read_to_string(deploy("systemd/tidegate.service")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidegate.service");
    // The program must be there to be checked.
    fs::write(&path, unit.replace("/usr/local/bin/tidegate", TIDEGATE)).unwrap();
    let Ok(verified) = Command::new("systemd-analyze").arg("verify").arg(&path).output() else { return };
    let told = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !told.contains("tidegate.service:"), "{told}");
    let security = ["security", "--offline=true", "--threshold=30"];
    let judged = Command::new("systemd-analyze").args(security).arg(&path).output().unwrap();
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
}
