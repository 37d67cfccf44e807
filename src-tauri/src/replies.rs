//! Running replies: from `app`'s stream to the interface's channel, a frame's worth of text at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use app::{App, ConversationId, MessageId, MessageState, ReplyEvent, ReplyStream, StoredMessage};
use futures::{Stream, StreamExt};
use tauri::ipc::Channel;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::ipc::chat::ReplyEventDto;

/// A screen shows no more than this, and at 100 tokens a second a message to the web view costs more than a token.
const FRAME: Duration = Duration::from_millis(16);

/// The engine looks for a stop between two steps, and a step of prefill may take a second on a slow machine.
const STORED_WITHIN: Duration = Duration::from_secs(10);

/// The replies that run, by the id their caller made up.
#[derive(Clone, Default)]
pub(crate) struct Replies(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    running: HashMap<String, Running>,
    last_failed: bool,
}

struct Running {
    stop: Option<oneshot::Sender<()>>,
    on_node: bool,
}

/// What the icon tells of the replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    Calm,
    /// A reply is being written on a node.
    OnNode,
    /// The last reply failed.
    Failed,
}

impl Replies {
    /// Hands `reply` on to `channel` until it ends or is stopped.
    pub(crate) fn start(&self, app: App, id: String, reply: ReplyStream, channel: Channel<ReplyEventDto>) {
        let (stop, stopped) = oneshot::channel();
        self.lock().running.insert(id.clone(), Running { stop: Some(stop), on_node: false });
        let replies = self.clone();
        tauri::async_runtime::spawn(async move {
            let mut answer = None;
            let mut send = |event: ReplyEventDto| {
                replies.note(&id, &event);
                if let ReplyEventDto::Accepted { conversation_id, message_id, .. } = event {
                    answer = Some((ConversationId(conversation_id), MessageId(message_id)));
                }
                // A window that is gone takes its channel with it; the reply goes on into the store.
                if let Err(error) = channel.send(event) {
                    tracing::debug!(%error, "nobody takes this reply's events");
                }
            };
            let end = forward(reply, stopped, &mut send).await;
            if end == End::Stopped
                && let Some((conversation, message)) = answer
                && let Some(message) = stopped_message(&app, conversation, message).await
            {
                // What a stopped reply became is told like that of any other.
                let _ = channel.send(ReplyEventDto::Finished { message: message.into() });
            }
            replies.lock().running.remove(&id);
        });
    }

    /// Stops a reply. One that has ended already is left alone.
    pub(crate) fn stop(&self, id: &str) {
        if let Some(stop) = self.lock().running.get_mut(id).and_then(|running| running.stop.take()) {
            // The receiver is gone where the reply ended in this very moment.
            let _ = stop.send(());
        }
    }

    pub(crate) fn outlook(&self) -> Outlook {
        let state = self.lock();
        if state.running.values().any(|running| running.on_node) {
            Outlook::OnNode
        } else if state.last_failed && state.running.is_empty() {
            Outlook::Failed
        } else {
            Outlook::Calm
        }
    }

    fn note(&self, id: &str, event: &ReplyEventDto) {
        let mut state = self.lock();
        if let ReplyEventDto::Failed { .. } | ReplyEventDto::Finished { .. } = event {
            state.last_failed = matches!(event, ReplyEventDto::Failed { .. });
        }
        if let (Some(on_node), Some(running)) = (event.runs_on_node(), state.running.get_mut(id)) {
            running.on_node = on_node;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while the replies are held")
    }
}

/// How a reply's events ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    ByItself,
    Stopped,
}

/// Sends every event in order. Text that comes within a frame of text that was sent goes as one piece.
async fn forward(
    mut events: impl Stream<Item = ReplyEvent> + Unpin,
    mut stopped: oneshot::Receiver<()>,
    send: &mut impl FnMut(ReplyEventDto),
) -> End {
    let mut batch = Batch::default();
    loop {
        let event = tokio::select! {
            biased;
            Ok(()) = &mut stopped, if !stopped.is_terminated() => {
                batch.flush(send);
                return End::Stopped;
            }
            event = before(batch.due(), events.next()) => event,
        };
        match event {
            Some(Some(event)) => batch.take(event.into(), send),
            Some(None) => {
                batch.flush(send);
                return End::ByItself;
            }
            None => batch.flush(send),
        }
    }
}

/// `None` where `due` comes first.
async fn before<T>(due: Option<Instant>, event: impl Future<Output = T>) -> Option<T> {
    match due {
        Some(due) => timeout_at(due, event).await.ok(),
        None => Some(event.await),
    }
}

/// Text that waits for its frame to end.
#[derive(Default)]
struct Batch {
    waiting: Option<ReplyEventDto>,
    last_sent: Option<Instant>,
}

impl Batch {
    fn due(&self) -> Option<Instant> {
        self.waiting.as_ref().and(self.last_sent).map(|sent| sent + FRAME)
    }

    fn take(&mut self, event: ReplyEventDto, send: &mut impl FnMut(ReplyEventDto)) {
        match (&mut self.waiting, event) {
            (Some(ReplyEventDto::Text { text }), ReplyEventDto::Text { text: more })
            | (Some(ReplyEventDto::Thinking { text }), ReplyEventDto::Thinking { text: more }) => text.push_str(&more),
            (_, event) => {
                self.flush(send);
                let is_text = matches!(event, ReplyEventDto::Text { .. } | ReplyEventDto::Thinking { .. });
                self.waiting = Some(event);
                if !is_text || self.due().is_none_or(|due| due <= Instant::now()) {
                    self.flush(send);
                }
            }
        }
    }

    fn flush(&mut self, send: &mut impl FnMut(ReplyEventDto)) {
        if let Some(event) = self.waiting.take() {
            send(event);
            self.last_sent = Some(Instant::now());
        }
    }
}

/// A stopped answer as it was stored, once it is; nothing where that takes too long or it was deleted meanwhile.
async fn stopped_message(app: &App, conversation: ConversationId, message: MessageId) -> Option<StoredMessage> {
    let mut changes = app.watch_conversations();
    let ended = async {
        loop {
            let (found, _) = app.conversation(conversation).await.ok()?;
            let answer = found.messages.into_iter().find(|stored| stored.id == message)?;
            if answer.state != MessageState::Writing {
                return Some(answer);
            }
            changes.changed().await.ok()?;
        }
    };
    timeout(STORED_WITHIN, ended).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use app::chat::Progress;
    use futures::stream;

    use super::*;

    fn text(text: &str) -> ReplyEvent {
        ReplyEvent::Text(text.to_owned())
    }

    /// The events' texts, `|` between messages, `*` for what isn't text.
    async fn sent(events: impl Stream<Item = ReplyEvent>, stopped: oneshot::Receiver<()>) -> (String, End) {
        let mut messages = Vec::new();
        let mut send = |event| {
            messages.push(match event {
                ReplyEventDto::Text { text } | ReplyEventDto::Thinking { text } => text,
                _ => "*".to_owned(),
            });
        };
        let end = forward(std::pin::pin!(events), stopped, &mut send).await;
        (messages.join("|"), end)
    }

    #[tokio::test(start_paused = true)]
    async fn text_of_one_frame_is_one_message_and_keeps_its_order() {
        let (_running, stopped) = oneshot::channel();
        let events = [
            ReplyEvent::Progress(Progress::Waiting { ahead: 1 }),
            text("a"),
            text("b"),
            text("c"),
            ReplyEvent::Thinking("t".to_owned()),
            text("d"),
        ];
        assert_eq!(sent(stream::iter(events), stopped).await, ("*|abc|t|d".to_owned(), End::ByItself));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_text_is_sent_as_it_comes_and_fast_text_each_frame() {
        let (_running, stopped) = oneshot::channel();
        let slow = stream::iter(["a", "b", "c"]).then(|part| async move {
            tokio::time::sleep(FRAME * 2).await;
            text(part)
        });
        let fast = stream::iter(["d", "e", "f", "g"]).then(|part| async move {
            tokio::time::sleep(FRAME / 2 + Duration::from_millis(1)).await;
            text(part)
        });
        assert_eq!(sent(slow.chain(fast), stopped).await.0, "a|b|c|d|ef|g");
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_sends_what_waits_and_ends() {
        let (stop, stopped) = oneshot::channel();
        let events = stream::iter(["a", "b", "c"]).map(text).chain(stream::once(async move {
            stop.send(()).unwrap();
            std::future::pending().await
        }));
        assert_eq!(sent(events, stopped).await, ("a|bc".to_owned(), End::Stopped));
    }
}
