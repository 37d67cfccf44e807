//! What either side does in one turn, and the figures that come out of it.

use anyhow::{Result, ensure};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::figures::{Figure, Figures, Side, median, of_llama_bench, of_tidegate};
use super::peer::Peer;
use super::process::said_by;
use super::server::{Answer, Server};
use super::subjects::Subject;
use crate::steps::shell_line;
use crate::workspace::Workspace;

/// What is measured at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Decode of the model alone, with an empty context and behind a long one: `tidegate bench` and `llama-bench`.
    Decode,
    /// Prefill of the model alone, of so many tokens.
    Prefill(u64),
    /// A server, asked over HTTP.
    Server,
    /// The command line, from its start to its first byte.
    Start,
}

/// Before this many tokens decode is measured.
const DEPTHS: [u64; 2] = [0, 2048];
/// Tokens of context for each answer of a server: what the long conversation needs.
const CONTEXT: usize = 2560;
const TOGETHER: usize = 4;
/// One token of most vocabularies each; a long conversation is made of them.
const WORDS: [&str; 8] = ["river", "stone", "garden", "winter", "bridge", "island", "music", "light"];

impl Part {
    pub(super) const OF_MODEL: [Self; 3] = [Self::Decode, Self::Prefill(512), Self::Prefill(32)];
    pub(super) const ALL: [Self; 5] = [Self::Decode, Self::Prefill(512), Self::Prefill(32), Self::Server, Self::Start];
    /// What `--only` can name.
    pub(super) const NAMES: [&str; 4] = ["decode", "prefill", "server", "start"];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill(_) => "prefill",
            Self::Server => "server",
            Self::Start => "start",
        }
    }

    /// What comes out of it.
    fn figures(self) -> Vec<Figure> {
        match self {
            Self::Decode => DEPTHS.map(|depth| Figure::Decode { depth }).to_vec(),
            Self::Prefill(tokens) => vec![Figure::Prefill { tokens, depth: 0 }],
            Self::Server => {
                vec![Figure::SecondTurn, Figure::Alone, Figure::Together, Figure::Gain, Figure::PeakMemory]
            }
            Self::Start => vec![Figure::ColdStart],
        }
    }

    /// Notes why its figures are missing on some sides.
    pub(super) fn fail(self, sides: &[Side], reason: &str, figures: &mut Figures) {
        for figure in self.figures() {
            let entry = figures.entry(figure).or_default();
            sides.iter().for_each(|side| entry.of(*side).failure = Some(reason.to_owned()));
        }
    }

    /// How often a model runs over one token, about; all that the forecast of what remains is made of.
    pub(super) const fn work(self) -> u64 {
        match self {
            Self::Decode => 1000,
            Self::Prefill(tokens) => 100 + tokens / 2,
            Self::Server => 1500,
            Self::Start => 200,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill(tokens) => write!(f, "prefill {tokens}"),
            part => f.write_str(part.name()),
        }
    }
}

/// Both programs on one machine.
pub(super) struct Bench {
    pub(super) tidegate: PathBuf,
    pub(super) peer: Peer,
    pub(super) threads: usize,
    /// For what the programs leave: settings, caches, complaints.
    pub(super) scratch: PathBuf,
}

impl Bench {
    /// Either side's turn at `part`, the other one first every other round; what fails is noted in `figures`. Tells the
    /// figures of both, and what failed.
    pub(super) fn turns(
        &self,
        subject: &Subject,
        part: Part,
        round: usize,
        figures: &mut Figures,
    ) -> (String, Vec<String>) {
        let mut order = [Side::Ours, Side::Theirs];
        order.rotate_left(round % 2);
        let mut failures = Vec::new();
        for side in order {
            let mut measured = Measured { figures, side };
            if let Err(error) = self.turn(subject, part, &mut measured) {
                let reason = format!("{error:#}");
                part.fail(&[side], &reason, figures);
                failures.push(format!("{}: {reason}", if side == Side::Ours { "Tidegate" } else { "llama.cpp" }));
            }
        }
        let told = part.figures().into_iter().filter_map(|figure| {
            let sides = figures.get(&figure)?;
            let value = |values: &[f64]| values.last().map_or_else(|| "–".to_owned(), |value| figure.value(*value));
            Some(format!("{} : {}", value(&sides.ours.values), value(&sides.theirs.values)))
        });
        (told.collect::<Vec<_>>().join(", "), failures)
    }

    fn turn(&self, subject: &Subject, part: Part, measured: &mut Measured<'_>) -> Result<()> {
        let [ours, theirs] = self.commands(subject, part, 0);
        let mut command = if measured.side == Side::Ours { ours } else { theirs };
        self.clear()?;
        match (part, measured.side) {
            (Part::Decode | Part::Prefill(_), Side::Ours) => {
                let run = of_tidegate(&said_by(&mut command)?.output)?;
                run.figures.into_iter().for_each(|(figure, value)| measured.take(figure, value));
                for (figure, ratio) in run.bandwidth_ratios {
                    measured.figures.entry(figure).or_default().bandwidth_ratios.push(ratio);
                }
            }
            (Part::Decode | Part::Prefill(_), Side::Theirs) => {
                let figures = of_llama_bench(&said_by(&mut command)?.output)?;
                figures.into_iter().for_each(|(figure, value)| measured.take(figure, value));
            }
            (Part::Server, side) => self.over_http(subject, side, measured)?,
            (Part::Start, _) => measured.take(Figure::ColdStart, first_byte(&mut command)?.as_secs_f64()),
        }
        Ok(())
    }

    /// Empties the folder for what programs leave.
    fn clear(&self) -> Result<()> {
        if self.scratch.exists() {
            fs::remove_dir_all(&self.scratch)?;
        }
        Ok(fs::create_dir_all(&self.scratch)?)
    }

    /// What both sides run; servers listen on `port`.
    pub(super) fn commands(&self, subject: &Subject, part: Part, port: u16) -> [Command; 2] {
        let mut ours = Command::new(&self.tidegate);
        let mut theirs = self.peer.command(match part {
            Part::Decode | Part::Prefill(_) => "llama-bench",
            Part::Server => "llama-server",
            Part::Start => "llama-completion",
        });
        let (threads, data) = (self.threads.to_string(), self.scratch.join("data"));
        let depths = DEPTHS.map(|depth| depth.to_string()).join(",");
        match part {
            Part::Decode => {
                ours.args(["bench", "--pp", "0", "--tg", "128", "--depth", &depths, "--runs", "1", "--json"]);
                theirs.args(["-p", "0", "-n", "128", "-d", &depths, "-r", "1", "-o", "json"]);
            }
            Part::Prefill(tokens) => {
                // What is over at once is measured more often.
                let (tokens, runs) = (tokens.to_string(), if tokens > 100 { "1" } else { "5" });
                ours.args(["bench", "--pp", &tokens, "--tg", "0", "--depth", "0", "--runs", runs, "--json"]);
                theirs.args(["-p", &tokens, "-n", "0", "-r", runs, "-o", "json"]);
            }
            Part::Server => {
                ours.args(["serve", "--offload", "local", "--listen", &format!("127.0.0.1:{port}")]);
                ours.arg("--data").arg(data);
                theirs.args(["-np", &TOGETHER.to_string(), "-c", &(TOGETHER * CONTEXT).to_string(), "--no-ui"]);
                theirs.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            }
            Part::Start => {
                ours.args(["chat", "--once", "Hello", "--max-tokens", "1", "--temp", "0", "--offload", "local"]);
                ours.arg("--data").arg(data);
                theirs.args(["-p", "Hello", "-n", "1", "--temp", "0", "-cnv", "-st", "--no-display-prompt"]);
                theirs.args(["--no-warmup", "-c", &CONTEXT.to_string()]);
            }
        }
        ours.arg("--model").arg(&subject.file).args(["--threads", &threads]);
        theirs.arg("-m").arg(&subject.file).args(["-t", &threads]);
        [ours, theirs]
    }

    /// All that is run of `subject`, as one would type it in the checkout.
    pub(super) fn command_lines(&self, workspace: &Workspace, subject: &Subject) -> Vec<String> {
        let root = format!("{}/", workspace.root.display());
        let commands = subject.parts.iter().flat_map(|part| self.commands(subject, *part, 8080));
        commands.map(|command| shell_line(&command).replace(&root, "")).collect()
    }

    /// What a chat program sees of a server: the second turn of a long conversation, and four answers together.
    fn over_http(&self, subject: &Subject, side: Side, measured: &mut Measured<'_>) -> Result<()> {
        let server = Server::start(&self.scratch.join("server.log"), |port| {
            let [ours, theirs] = self.commands(subject, Part::Server, port);
            if side == Side::Ours { ours } else { theirs }
        })?;
        // Loads the weights where that wasn't done yet.
        server.ask(&[("user", "Hello")], 1)?;
        let words: Vec<&str> = (0..1_950).map(|i| WORDS[i * i % 37 % WORDS.len()]).collect();
        let long = format!("Here is a list of words. {}. Tell a story with the first three of them.", words.join(" "));
        let told = server.ask(&[("user", &long)], 32)?.text;
        let second = [("user", long.as_str()), ("assistant", &told), ("user", "How does it end?")];
        let answer = server.ask(&second, 4)?;
        measured.take(Figure::SecondTurn, (answer.first - answer.asked).as_secs_f64());

        let prompts: Vec<String> =
            (0..TOGETHER).map(|i| format!("Tell a long story about a {} and what happened there.", WORDS[i])).collect();
        let tell = |prompt: &String| server.ask(&[("user", prompt)], 128);
        let alone = speed(&[tell(&prompts[0])?]);
        let answers: Result<Vec<_>> = thread::scope(|scope| {
            let asked: Vec<_> = prompts.iter().map(|prompt| scope.spawn(move || tell(prompt))).collect();
            asked.into_iter().map(|answer| answer.join().expect("asking does not panic")).collect()
        });
        let together = speed(&answers?);
        measured.take(Figure::Alone, alone);
        measured.take(Figure::Together, together);
        measured.take(Figure::Gain, together / alone);
        measured.take(Figure::PeakMemory, server.stop()? as f64);
        Ok(())
    }
}

/// Where one side's figures go.
struct Measured<'a> {
    figures: &'a mut Figures,
    side: Side,
}

impl Measured<'_> {
    fn take(&mut self, figure: Figure, value: f64) {
        self.figures.entry(figure).or_default().of(self.side).values.push(value);
    }
}

/// Tokens per second of answers that were written at the same time.
fn speed(answers: &[Answer]) -> f64 {
    let first = answers.iter().map(|answer| answer.first).min();
    let last = answers.iter().map(|answer| answer.last).max();
    let time = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
    // The first token of each comes out of its prefill.
    let tokens: u64 = answers.iter().map(|answer| answer.tokens.saturating_sub(1)).sum();
    tokens as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// The time from the start of a program to the first byte that it prints; the median of three after one that finds the
/// file in memory.
fn first_byte(command: &mut Command) -> Result<Duration> {
    let mut times = Vec::new();
    for run in 0..4 {
        let said = said_by(command)?;
        ensure!(!said.output.is_empty(), "{} printed nothing", shell_line(command));
        if run > 0 {
            times.push(said.first_byte.as_secs_f64());
        }
    }
    Ok(Duration::from_secs_f64(median(&times).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_prints_nothing_has_no_first_byte() {
        let mut command = Command::new("sh");
        command.args(["-c", "printf x"]);
        assert!(first_byte(&mut command).unwrap() > Duration::ZERO);
        assert!(first_byte(&mut Command::new("true")).unwrap_err().to_string().contains("printed nothing"));
    }
}
