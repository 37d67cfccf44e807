//! What `tidegate serve` is to do: its file (`--config`), with the arguments over it.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Deserializer, de};

use crate::args::ServeArgs;

/// The file. Paths in it count from its folder; what it doesn't say is as without a file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServiceFile {
    #[serde(deserialize_with = "address")]
    listen: Option<SocketAddr>,
    data: Option<PathBuf>,
    models: Vec<PathBuf>,
    #[serde(deserialize_with = "tokens")]
    context: Option<usize>,
    slots: Option<NonZeroU16>,
    queue: Option<u16>,
    timeouts: Timeouts,
    log: Log,
    keys: Keys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Timeouts {
    drain_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    level: Option<Level>,
    file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    required: bool,
    file: Option<PathBuf>,
}

/// The least that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// What holds: the arguments, else the file, else what is usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) listen: SocketAddr,
    pub(crate) data: Option<PathBuf>,
    pub(crate) models_dirs: Vec<PathBuf>,
    pub(crate) context: Option<usize>,
    pub(crate) slots: u16,
    pub(crate) queue: u16,
    pub(crate) drain: Duration,
    pub(crate) level: Level,
    pub(crate) log_file: Option<PathBuf>,
    /// On loopback as well.
    pub(crate) key_required: bool,
    pub(crate) key_file: Option<PathBuf>,
}

impl Service {
    /// Reads the file of `args`, where they name one.
    ///
    /// # Errors
    /// Where it can't be read, or says what makes no sense: with its line, its key and what is allowed.
    pub(crate) fn read(args: &ServeArgs) -> anyhow::Result<Self> {
        let Some(path) = &args.config else { return Ok(Self::new(args, ServiceFile::default())) };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // In its folder, even where that is this one.
        let folder = std::path::absolute(path).ok().and_then(|path| path.parent().map(Path::to_owned));
        let file = parse(&text, &folder.unwrap_or_default()).with_context(|| path.display().to_string())?;
        Ok(Self::new(args, file))
    }

    fn new(args: &ServeArgs, file: ServiceFile) -> Self {
        let models_dirs = if args.setup.models_dirs.is_empty() { file.models } else { args.setup.models_dirs.clone() };
        Self {
            listen: args.listen.or(file.listen).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 11500))),
            data: args.setup.data.clone().or(file.data),
            models_dirs,
            context: args.context.or(file.context),
            slots: args.slots.or(file.slots).map_or(4, NonZeroU16::get),
            queue: args.queue.or(file.queue).unwrap_or(64),
            drain: Duration::from_secs(args.drain.or(file.timeouts.drain_seconds).unwrap_or(30)),
            level: file.log.level.unwrap_or(Level::Error),
            log_file: file.log.file,
            key_required: file.keys.required,
            key_file: args.key_file.clone().or(file.keys.file),
        }
    }

    /// What `new` has otherwise that a running server can't change.
    pub(crate) fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let changed = [
            ("listen", self.listen != new.listen),
            ("data", self.data != new.data),
            ("context", self.context != new.context),
            ("timeouts.drain_seconds", self.drain != new.drain),
            ("keys", self.key_required != new.key_required || self.key_file != new.key_file),
        ];
        changed.into_iter().filter_map(|(name, is_changed)| is_changed.then_some(name)).collect()
    }
}

fn parse(text: &str, folder: &Path) -> anyhow::Result<ServiceFile> {
    // The error shows the line and points into it.
    let mut file: ServiceFile = toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
    let paths = [&mut file.data, &mut file.log.file, &mut file.keys.file].into_iter().flatten();
    for path in paths.chain(&mut file.models) {
        *path = folder.join(&*path);
    }
    Ok(file)
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(|_| de::Error::custom("an address is `IP:PORT`, as \"127.0.0.1:11500\""))
}

fn tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let tokens = usize::deserialize(deserializer)?;
    if !app::CONTEXT_LENGTHS.contains(&tokens) {
        let (least, most) = (app::CONTEXT_LENGTHS.start(), app::CONTEXT_LENGTHS.end());
        return Err(de::Error::custom(format!("a context has {least} to {most} tokens")));
    }
    Ok(Some(tokens))
}

#[cfg(test)]
mod tests {
    use clap::builder::Resettable;
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::args::{Args, Command};

    const FILE: &str = r#"
        listen = "[::1]:8080"
        data = "state"
        models = ["models", "/srv/models"]
        context = 16384
        slots = 2
        queue = 8
        [timeouts]
        drain_seconds = 5
        [log]
        level = "info"
        file = "tidegate.log"
        [keys]
        required = true
        file = "key"
    "#;

    fn service(text: &str, arguments: &[&str]) -> Service {
        let line = ["tidegate", "serve"].iter().chain(arguments);
        // Whatever the environment of the test says.
        let command = Args::command().mut_subcommand("serve", |serve| serve.mut_args(|arg| arg.env(Resettable::Reset)));
        let matches = command.get_matches_from(line);
        let Command::Serve(args) = Args::from_arg_matches(&matches).unwrap().command else { panic!("{arguments:?}") };
        Service::new(&args, parse(text, Path::new("/etc/tidegate")).unwrap())
    }

    #[test]
    fn arguments_come_before_the_file_and_the_file_before_what_is_usual() {
        let usual = service("", &[]);
        assert_eq!((usual.listen.to_string().as_str(), usual.slots, usual.queue), ("127.0.0.1:11500", 4, 64));
        let file = service(FILE, &[]);
        assert_eq!((file.listen.to_string().as_str(), file.slots, file.queue), ("[::1]:8080", 2, 8));
        assert_eq!(file.models_dirs, [Path::new("/etc/tidegate/models"), Path::new("/srv/models")]);
        assert_eq!(file.log_file.as_deref(), Some(Path::new("/etc/tidegate/tidegate.log")));
        assert_eq!((file.level, file.key_required, file.context), (Level::Info, true, Some(16384)));
        let flags = ["--slots", "3", "--drain", "1", "--models", "/m", "--listen", "127.0.0.1:0", "--context", "512"];
        let both = service(FILE, &flags);
        assert_eq!((both.slots, both.queue, both.drain), (3, 8, Duration::from_secs(1)));
        assert_eq!((both.models_dirs, both.context), (vec![PathBuf::from("/m")], Some(512)));
    }

    #[test]
    fn what_makes_no_sense_is_told_with_its_line_its_key_and_what_is_allowed() {
        let check = |text: &str, words: &[&str]| {
            let error = parse(text, Path::new("/")).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        check("queue = 1\nslot = 2\n", &["line 2", "`slot`", "`slots`", "`models`"]);
        check("slots = 0\n", &["line 1", "slots", "nonzero"]);
        check("\n\nslots = \"many\"\n", &["line 3", "slots", "string", "nonzero"]);
        check("listen = \"localhost\"\n", &["line 1", "listen", "IP:PORT"]);
        check("context = 12\n", &["line 1", "context", "256 to 1048576"]);
        check("queue = -1\n", &["line 1", "queue", "u16"]);
        check("[log]\nlevel = \"loud\"\n", &["line 2", "level", "`loud`", "`warn`"]);
        check("[keys]\nneeded = true\n", &["line 2", "`needed`", "`required`"]);
        check("slots = \n", &["line 1"]);
    }

    #[test]
    fn a_change_that_needs_a_restart_is_told() {
        let before = service(FILE, &[]);
        let after = service(&FILE.replace("8080", "8081").replace("slots = 2", "slots = 9").replace("= 5", "= 6"), &[]);
        assert_eq!(before.needs_restart(&after), ["listen", "timeouts.drain_seconds"]);
        assert!(before.needs_restart(&service(&FILE.replace("info", "warn"), &[])).is_empty());
    }
}
