//! An answer that a node goes on with from text: rendered here by the model's own template, and read as it is read here.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use chat::{ChatEvent, ChatRequest, Finish, FinishReason, Timings, Usage};
use engine::{EngineHandle, GenerateError, RenderedAnswer, RenderedReader};
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use nodes::{NodeClient, NodeError, NodeStream, Seam, TextPrompt};
use routing::EgressPass;

/// What is needed to let a node go on.
pub(crate) struct TextAsk {
    pub(crate) engine: EngineHandle,
    /// The model's file here.
    pub(crate) path: PathBuf,
    pub(crate) client: Arc<NodeClient>,
    pub(crate) pass: EgressPass,
    pub(crate) seam: Seam,
    /// Its name there.
    pub(crate) model: String,
    pub(crate) request: ChatRequest,
    /// Tokens of prompt and answer together.
    pub(crate) context_len: usize,
}

/// Why a node doesn't go on.
pub(crate) enum TextFailure {
    Rendering(GenerateError),
    Node(NodeError),
}

impl From<GenerateError> for TextFailure {
    fn from(error: GenerateError) -> Self {
        Self::Rendering(error)
    }
}

impl From<NodeError> for TextFailure {
    fn from(error: NodeError) -> Self {
        Self::Node(error)
    }
}

impl TextAsk {
    /// The rest of the answer, as [`NodeClient::chat`] would give it. The node is asked when it is first polled.
    pub(crate) fn stream(self) -> BoxStream<'static, Result<ChatEvent, TextFailure>> {
        stream::once(self.ask()).try_flatten().boxed()
    }

    async fn ask(self) -> Result<impl Stream<Item = Result<ChatEvent, TextFailure>>, TextFailure> {
        let Self { engine, path, client, pass, seam, model, request, context_len } = self;
        let rendered = engine.rendered(&path, &request).await?;
        let RenderedAnswer { prompt, prompt_tokens, written_tokens, marks, reader } = rendered;
        let mut sampling = request.sampling;
        // Said in any case, for many servers stop after 16 tokens otherwise.
        let room = context_len.saturating_sub(prompt_tokens);
        let most = sampling.max_tokens.map_or(room, |most| most.saturating_sub(written_tokens).min(room));
        sampling.max_tokens = Some(most.max(1));
        // They end an answer, and not the thinking before it: the reader looks for them.
        sampling.stop.clear();
        let marks = marks.into_iter().map(|(_, name)| name).collect();
        let stream = client.complete(pass, &model, TextPrompt { prompt, marks, seam }, sampling)?;
        let answer = Answer {
            node: Some(stream),
            reader,
            conversation_tokens: prompt_tokens.saturating_sub(written_tokens),
            written_tokens,
            out: VecDeque::new(),
        };
        Ok(stream::try_unfold(
            answer,
            |mut answer| async move { Ok(answer.next().await?.map(|event| (event, answer))) },
        ))
    }
}

/// An answer that is being read.
struct Answer {
    /// `None` once nothing more is wanted of it; dropping it closes the connection.
    node: Option<NodeStream>,
    reader: RenderedReader,
    conversation_tokens: usize,
    written_tokens: usize,
    out: VecDeque<ChatEvent>,
}

impl Answer {
    async fn next(&mut self) -> Result<Option<ChatEvent>, TextFailure> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Ok(Some(event));
            }
            let Some(node) = &mut self.node else { return Ok(None) };
            if self.reader.is_stopped() {
                // How many tokens it was isn't told by a node that is stopped.
                let finish = Finish { reason: FinishReason::Stop, usage: None, timings: Timings::default() };
                self.end(finish)?;
                continue;
            }
            match node.next().await.transpose()? {
                Some(ChatEvent::Text(text)) => self.out.extend(self.reader.push(&text)?),
                Some(ChatEvent::Tokens { ids, .. }) => {
                    if let [token] = ids[..] {
                        self.reader.begin_with(token);
                    }
                }
                Some(ChatEvent::Finished(finish)) => self.end(finish)?,
                Some(event @ ChatEvent::Progress(_)) => return Ok(Some(event)),
                // Nothing else comes of text.
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn end(&mut self, finish: Finish) -> Result<(), TextFailure> {
        self.node = None;
        self.out.extend(self.reader.finish()?);
        let reason = if self.reader.is_stopped() { FinishReason::Stop } else { finish.reason };
        // What was written before was a part of the prompt there.
        let usage = finish.usage.map(|usage| Usage {
            prompt_tokens: self.conversation_tokens,
            cached_tokens: usage.cached_tokens.min(self.conversation_tokens),
            completion_tokens: self.written_tokens + usage.completion_tokens,
        });
        self.out.push_back(ChatEvent::Finished(Finish { reason, usage, ..finish }));
        Ok(())
    }
}
