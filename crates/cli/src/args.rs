use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use anyhow::{Context, bail};
use app::{AppConfig, NodeAddress, OffloadMode};
use clap::{ArgGroup, Parser, Subcommand, ValueEnum};

/// Runs language models on this machine and hands the work to a node before the machine would swap or throttle.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  tidegate chat                                        talk in this terminal
  tidegate chat --once \"What is 7 times 8?\" --temp 0   print one answer and leave
  tidegate fit ~/Downloads/qwen3-8b-q4_k_m.gguf        would this file run here, now?
  tidegate route --explain free=4GiB node=studio/up    where would an answer be made then?
  tidegate log --why 12                                where that answer went, and from which readings
  tidegate serve --listen 127.0.0.1:11500              an OpenAI-compatible server
  tidegate bench --calibrate                           what this machine can do
  tidegate serve --config tidegate.toml                as a service, see deploy/
  tidegate serve --node http://studio.local:11500 --offload auto

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the file doesn't fit (fit).
TIDEGATE_LOG=info shows what happens inside (on standard error).";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Chat in the terminal, or print one answer with --once.
    Chat(ChatArgs),
    /// Serve the OpenAI-compatible gateway without a window.
    Serve(ServeArgs),
    /// Show memory, swap, heat and load as Tidegate sees them.
    Vitals(VitalsArgs),
    /// Tell whether a model file fits in memory now, and with which context.
    Fit(FitArgs),
    /// Explain where an answer would be made, on a machine that you describe.
    Route(RouteArgs),
    /// Show where answers went and why, the newest first.
    Log(LogArgs),
    /// Measure how fast a model answers on this machine, what the machine can do, and what memory pressure does to it.
    Bench(BenchArgs),
    /// Hold memory for `bench --pressure`.
    #[command(hide = true)]
    HoldMemory(HoldMemoryArgs),
}

/// Where models, nodes and chats come from.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Setup {
    /// A GGUF file or a model folder to use; may be given several times, the first is the chosen one.
    #[arg(long = "model", value_name = "FILE")]
    pub(crate) models: Vec<PathBuf>,
    /// A folder of models to list beside the user's own; may be given several times.
    #[arg(long = "models", value_name = "DIR", env = "TIDEGATE_MODELS_DIR")]
    pub(crate) models_dirs: Vec<PathBuf>,
    /// A node for this run: the address of an OpenAI-compatible server; may be given several times.
    #[arg(long = "node", value_name = "URL")]
    pub(crate) nodes: Vec<String>,
    /// File with one `URL KEY` pair a line for nodes that want a key. TIDEGATE_NODE_KEY is the key for all others.
    #[arg(long, value_name = "FILE")]
    pub(crate) node_keys: Option<PathBuf>,
    /// Where answers may run; otherwise as saved.
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(crate) offload: Option<Offload>,
    /// How keys and values are kept for this run; otherwise as saved.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) kv_type: Option<KvType>,
    /// A smaller model of the same vocabulary that guesses what the model will write, or `none`; otherwise as saved, or
    /// the smallest listed model of the family that is small enough. It never changes an answer.
    #[arg(long, value_name = "FILE")]
    pub(crate) draft: Option<PathBuf>,
    /// Threads that compute; otherwise one for each core.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) threads: Option<usize>,
    /// Folder of chats, settings and keys.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Offload {
    /// Never leave this machine.
    Local,
    /// A node when this machine would swap, throttle or not hold the model.
    Auto,
    /// Always a node.
    Remote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvType {
    /// As they are computed.
    F32,
    /// Rounded to half the memory.
    F16,
    /// In 8 bits, where the model allows it.
    Q8,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// Print the answer to this prompt, alone, and leave.
    #[arg(long, value_name = "PROMPT")]
    pub(crate) once: Option<String>,
    /// Instructions for the model, before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Same seed, same prompt, same machine: same answer.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Sampling temperature; 0 always takes the likeliest token.
    #[arg(long = "temp", value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// The most tokens to write.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// With --once: one JSON object with the answer, the decision and the figures.
    #[arg(long, requires = "once")]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// File that says what is to be served, and how, in TOML; arguments come before it. SIGHUP reads it anew.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address to listen on, otherwise 127.0.0.1:11500; port 0 takes a free one. Beyond loopback a key is required.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// The most tokens of prompt and answer together; otherwise as saved.
    #[arg(long, value_name = "TOKENS", value_parser = context_len)]
    pub(crate) context: Option<usize>,
    /// File with the key that clients must send; otherwise TIDEGATE_KEY from the environment.
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Answers that are written here at the same time; otherwise 4.
    #[arg(long, value_name = "N")]
    pub(crate) slots: Option<NonZeroU16>,
    /// Requests that may wait for a slot, otherwise 64; more are told to come back later.
    #[arg(long, value_name = "N")]
    pub(crate) queue: Option<u16>,
    /// Seconds that running answers get to end when the server is told to stop, otherwise 30. A second signal ends them at
    /// once.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) drain: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VitalsArgs {
    /// One JSON object.
    #[arg(long, conflicts_with = "raw")]
    pub(crate) json: bool,
    /// What the system said, word for word, for a bug report: every reading is made from this text.
    #[arg(long)]
    pub(crate) raw: bool,
    /// A new reading every second until stopped.
    #[arg(long, conflicts_with = "raw")]
    pub(crate) watch: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FitArgs {
    /// The GGUF file or the model folder.
    pub(crate) file: PathBuf,
    /// Context to judge, in tokens; otherwise that of the settings.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<usize>,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Folder of settings.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RouteArgs {
    /// What the machine, the chat and the nodes are like: free=4GiB node=studio/up. Nothing runs and nothing is read.
    #[arg(long, value_name = "WORD", num_args = 0.., required_unless_present = "words")]
    pub(crate) explain: Option<Vec<String>>,
    /// List the words.
    #[arg(long, conflicts_with = "explain")]
    pub(crate) words: bool,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// The most decisions to show.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: usize,
    /// One decision with its readings, their limits, the other places, and what would have made it otherwise.
    #[arg(long, value_name = "ID")]
    pub(crate) why: Option<i64>,
    /// JSON: a list of objects, or with --why one.
    #[arg(long)]
    pub(crate) json: bool,
    /// Forget the history.
    #[arg(long, conflicts_with_all = ["limit", "why", "json"])]
    pub(crate) clear: bool,
    /// Folder of chats and settings.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(
    group(ArgGroup::new("by-depth").args(["depth", "sustained"]).multiple(true)),
    group(ArgGroup::new("as-object").args(["depth", "sustained", "handoff", "guesses"]).multiple(true)),
)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// Answers to measure, after one that loads the weights.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: usize,
    /// The most tokens of each answer.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) tokens: usize,
    /// Write every reading taken while answers are written to this file, one JSON object a line.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["perplexity", "calibrate", "pressure"])]
    pub(crate) trace: Option<PathBuf>,
    /// Measure this machine instead (memory bandwidth, prefill, decode), and keep the result for forecasts.
    #[arg(long, conflicts_with_all = ["perplexity", "pressure"])]
    pub(crate) calibrate: bool,
    #[command(flatten)]
    pub(crate) pressure: PressureArgs,
    /// Measure how long a reader waits when an answer goes on at another node instead: handed over, after its node was
    /// killed, and begun anew. Starts two nodes on this machine, which share its cores. --runs is the number of each.
    #[arg(long, conflicts_with_all = ["perplexity", "calibrate", "pressure", "trace"])]
    pub(crate) handoff: bool,
    /// Measure how much sooner a chat, an edit of code and a summary come for tokens that are guessed: by lookup, by the
    /// draft, and by both. --tokens is the most of each answer.
    #[arg(long, requires = "models", conflicts_with_all = ["perplexity", "calibrate", "pressure", "trace", "handoff", "by-depth"])]
    pub(crate) guesses: bool,
    /// With --guesses: the sampling temperature; otherwise 0.
    #[arg(long = "temp", value_name = "T", requires = "guesses")]
    pub(crate) temperature: Option<f32>,
    #[command(flatten)]
    pub(crate) depth: DepthArgs,
    /// With --depth, --sustained, --guesses or --handoff: one JSON object.
    #[arg(long, requires = "as-object")]
    pub(crate) json: bool,
    /// Measure perplexity on this text instead of speed, as llama-perplexity does.
    #[arg(long, value_name = "TEXT", conflicts_with = "pressure")]
    pub(crate) perplexity: Option<PathBuf>,
    /// Tokens of one window of the text.
    #[arg(long, value_name = "N", default_value_t = 512, requires = "perplexity")]
    pub(crate) window: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DepthArgs {
    /// Measure prefill and decode behind so many tokens of context each, as `0,2048`; settings and caches of chats aren't
    /// used. --runs is how often each is timed.
    #[arg(long, value_name = "N,…", value_delimiter = ',', requires = "models",
          conflicts_with_all = ["perplexity", "calibrate", "pressure", "handoff", "trace"])]
    pub(crate) depth: Vec<usize>,
    /// Tokens of each prefill that --depth times; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) pp: usize,
    /// Tokens of each decode that --depth and --sustained time; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) tg: usize,
    /// Decode for so long, answer after answer, and tell how fast each was: what heat does.
    #[arg(long, value_name = "SECONDS", requires = "models",
          conflicts_with_all = ["perplexity", "calibrate", "pressure", "handoff", "trace"])]
    pub(crate) sustained: Option<u64>,
    /// Draw a picture of --depth or --sustained into this file.
    #[arg(long, value_name = "FILE", requires = "by-depth")]
    pub(crate) svg: Option<PathBuf>,
}

impl DepthArgs {
    pub(crate) const fn is_wanted(&self) -> bool {
        !self.depth.is_empty() || self.sustained.is_some()
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct PressureArgs {
    /// Take memory step by step while answers are written, without the guard and then, where a node is given, with it;
    /// writes pressure.json and pressure.svg. Other programs are slowed down meanwhile.
    #[arg(long)]
    pub(crate) pressure: bool,
    /// Folder for what --pressure writes; otherwise this one.
    #[arg(long, value_name = "DIR", requires = "pressure")]
    pub(crate) out: Option<PathBuf>,
    /// Make the limits that --pressure finds those of the settings.
    #[arg(long, requires = "pressure")]
    pub(crate) apply: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct HoldMemoryArgs {
    /// Never hold more bytes than this.
    #[arg(long, value_name = "BYTES")]
    pub(crate) most: u64,
}

fn context_len(text: &str) -> Result<usize, String> {
    let (least, most) = (app::CONTEXT_LENGTHS.start(), app::CONTEXT_LENGTHS.end());
    let tokens = text.parse().ok().filter(|tokens| app::CONTEXT_LENGTHS.contains(tokens));
    tokens.ok_or_else(|| format!("a context has {least} to {most} tokens"))
}

/// The folder given, or the usual one.
pub(crate) fn data_dir(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    given.or_else(app::default_data_dir).context("this user has no home folder: name one with --data DIR")
}

impl Setup {
    /// The configuration these arguments ask for.
    pub(crate) fn config(self) -> anyhow::Result<AppConfig> {
        let draft = self.draft.iter().filter(|file| file.as_os_str() != "none");
        for file in self.models.iter().chain(draft) {
            if !file.exists() {
                bail!("there is no file {}", file.display());
            }
        }
        let keys = self.node_keys.as_deref().map(node_keys).transpose()?.unwrap_or_default();
        let common = std::env::var("TIDEGATE_NODE_KEY").ok().filter(|key| !key.is_empty());
        let nodes = self
            .nodes
            .iter()
            .map(|url| {
                let same = |other: &str| NodeAddress::parse(other, None).ok().map(|address| address.url);
                let key = keys.iter().find(|(of, _)| same(of) == same(url)).map(|(_, key)| key.clone());
                Ok(NodeAddress::parse(url, key.or_else(|| common.clone()).map(chat::Redacted))?)
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(AppConfig {
            data_dir: data_dir(self.data)?,
            models_dirs: self.models_dirs,
            models: self.models,
            nodes,
            offload: self.offload.map(|offload| match offload {
                Offload::Local => OffloadMode::LocalOnly,
                Offload::Auto => OffloadMode::Auto,
                Offload::Remote => OffloadMode::Remote,
            }),
            kv_type: self.kv_type.map(|kv_type| match kv_type {
                KvType::F32 => app::KvType::F32,
                KvType::F16 => app::KvType::F16,
                KvType::Q8 => app::KvType::Q8,
            }),
            draft: self
                .draft
                .map(|file| if file.as_os_str() == "none" { app::Draft::None } else { app::Draft::Named(file) }),
            threads: self.threads,
            ..AppConfig::default()
        })
    }
}

fn node_keys(path: &std::path::Path) -> anyhow::Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let (url, key) = line
                .split_once(char::is_whitespace)
                .with_context(|| format!("line {} of {} is not `URL KEY`", number + 1, path.display()))?;
            Ok((url.to_owned(), key.trim().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_file_of_keys_is_read_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# mine\nhttp://studio:1 abc\n\nhttp://mini:2   d e\n").unwrap();
        let keys = node_keys(&path).unwrap();
        assert_eq!(keys[0], ("http://studio:1".to_owned(), "abc".to_owned()));
        assert_eq!(keys[1].1, "d e");
        std::fs::write(&path, "http://studio:1\n").unwrap();
        assert!(node_keys(&path).unwrap_err().to_string().contains("line 1"));
    }
}
