//! Memory that is really in use, held by a process of its own: taken in steps, given back at once.

use std::io::{BufRead, Write};
use std::process::{ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use chat::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Memory comes in blocks of this size, which are touched one after the other.
const BLOCK: Bytes = Bytes::mib(4);
/// No larger than the pages of any system.
const PAGE_WORDS: usize = 4096 / size_of::<u64>();
/// Everything is touched about so often: often enough to be memory in use, seldom enough to leave the processor alone.
const ROUND: Duration = Duration::from_secs(1);

/// A process that holds memory. It ends with this value, and with the process that started it, however that ends.
#[derive(Debug)]
pub(super) struct Ballast {
    _child: Child,
    orders: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
}

impl Ballast {
    /// Starts `command`, which has to come to [`hold_memory`].
    pub(super) fn start(mut command: Command) -> std::io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (orders, replies) = pipes.ok_or(std::io::ErrorKind::BrokenPipe)?;
        Ok(Self { _child: child, orders, replies: BufReader::new(replies).lines() })
    }

    /// Holds `total` from now on, more or less than before; what it came to once all of it was written.
    pub(super) async fn hold(&mut self, total: Bytes) -> std::io::Result<Bytes> {
        self.orders.write_all(format!("{}\n", total.0).as_bytes()).await?;
        let reply = self.replies.next_line().await?;
        reply.and_then(|line| line.parse().ok()).map(Bytes).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// What the process that holds memory does: reads how many bytes to hold from standard input, a line each time, fills them
/// with noise, which doesn't compress, answers how many it holds, and keeps them in use. It never holds more than `most`,
/// and ends when standard input does: with whoever started it.
pub fn hold_memory(most: Bytes) -> ExitCode {
    // Where memory runs out for good, Linux ends this process before any other. Elsewhere there is no such file.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let (orders, received) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(Ok(total)) = line.map(|line| line.trim().parse()) else { break };
            if orders.send(Bytes(total)).is_err() {
                break;
            }
        }
        // Not through the other thread, which may wait for memory.
        std::process::exit(0);
    });
    hold(&received, most, &mut std::io::stdout());
    ExitCode::SUCCESS
}

fn hold(orders: &Receiver<Bytes>, most: Bytes, replies: &mut impl Write) {
    let (mut blocks, mut noise): (Vec<Vec<u64>>, u64) = (Vec::new(), 0x9e37_79b9_7f4a_7c15);
    let mut next = 0;
    loop {
        let pause = ROUND / u32::try_from(blocks.len()).unwrap_or(u32::MAX).max(1);
        match orders.recv_timeout(pause) {
            Ok(total) => {
                let wanted = (total.min(most).0 / BLOCK.0) as usize;
                blocks.truncate(wanted);
                while blocks.len() < wanted {
                    blocks.push(block(&mut noise));
                }
                let held = blocks.len() as u64 * BLOCK.0;
                if writeln!(replies, "{held}").and_then(|()| replies.flush()).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(block) = blocks.get_mut(next) {
                    touch(block);
                }
                next = (next + 1) % blocks.len().max(1);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn block(noise: &mut u64) -> Vec<u64> {
    let mut word = || {
        // xorshift64*, <https://doi.org/10.18637/jss.v008.i14>.
        *noise ^= *noise << 13;
        *noise ^= *noise >> 7;
        *noise ^= *noise << 17;
        *noise
    };
    (0..BLOCK.0 as usize / size_of::<u64>()).map(|_| word()).collect()
}

/// Writes to each page: a page that is read only may be dropped where swap has a copy.
fn touch(block: &mut [u64]) {
    for page in block.chunks_mut(PAGE_WORDS) {
        page[0] = page[0].wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_held_in_blocks_up_to_the_limit() {
        let (orders, received) = channel();
        for mib in [0, 9, 100, 4] {
            orders.send(Bytes::mib(mib)).unwrap();
        }
        drop(orders);
        let mut replies = Vec::new();
        hold(&received, Bytes::mib(16), &mut replies);
        let held: Vec<u64> = String::from_utf8(replies).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(held, [0, 8 << 20, 16 << 20, 4 << 20]);
    }

    #[test]
    fn blocks_are_noise_and_differ() {
        let mut noise = 1;
        let (mut first, second) = (block(&mut noise), block(&mut noise));
        assert_ne!(first, second);
        let before = first.clone();
        touch(&mut first);
        let touched = first.iter().zip(&before).filter(|(now, before)| now != before).count();
        assert_eq!(touched as u64, BLOCK.0 / 4096);
    }
}
