//! A node to test against: a small HTTP server on a port of its own that does what its script says, and no more.
//!
//! It writes its bytes itself rather than through a web framework, because what it is for is what frameworks prevent: a
//! head without a body, a body without an end, a connection reset in the middle of an answer, a recorded reply byte for
//! byte. Pacing is by [`Gate`]s that the test opens, never by time.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// The model that a fake node has unless told otherwise.
pub const FAKE_MODEL: &str = "fake-model";

/// The text of a fake node's answer unless told otherwise.
pub const FAKE_ANSWER: [&str; 3] = ["Hello", " from", " the node"];

/// Holds a reply back until the test lets it go on.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets one waiting step through, or the next one that comes.
    pub fn pass(&self) {
        self.0.add_permits(1);
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.0.close();
    }

    async fn wait(&self) {
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

/// One step of a reply's body.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Waits for the gate.
    Wait(Gate),
    /// Closes the connection at once, so that the client reads a reset.
    Reset,
    /// Says nothing more and keeps the connection until the client closes it.
    Hang,
}

impl Step {
    /// A chunk of text of an answer.
    pub fn text(text: &str) -> Self {
        Self::chunk(&json!({ "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": null }] }))
    }

    /// A chunk of the model's thinking.
    pub fn thinking(text: &str) -> Self {
        Self::chunk(
            &json!({ "choices": [{ "index": 0, "delta": { "reasoning_content": text }, "finish_reason": null }] }),
        )
    }

    /// A chunk of what follows a text, as the endpoint for plain text writes it.
    pub fn rest(text: &str) -> Self {
        Self::chunk(
            &json!({ "object": "text_completion", "choices": [{ "index": 0, "text": text, "finish_reason": null }] }),
        )
    }

    /// The chunk that ends an answer: "stop", "length", ….
    pub fn finish(reason: &str) -> Self {
        Self::chunk(&json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] }))
    }

    /// The chunk that counts tokens.
    pub fn usage(prompt_tokens: usize, completion_tokens: usize) -> Self {
        let usage = json!({ "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens });
        Self::chunk(&json!({ "choices": [], "usage": usage }))
    }

    /// The mark at the end of a stream.
    pub fn done() -> Self {
        Self::Bytes(b"data: [DONE]\n\n".to_vec())
    }

    /// Any event of a stream.
    pub fn chunk(data: &Value) -> Self {
        Self::Bytes(format!("data: {data}\n\n").into_bytes())
    }
}

/// What the node does with one request.
#[derive(Clone, Debug)]
pub struct Reply {
    head: Vec<u8>,
    steps: Vec<Step>,
}

impl Reply {
    /// A streamed answer of these steps, and nothing after them: the connection is closed in order.
    pub fn stream(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { head: head(200, "text/event-stream", &[]), steps: steps.into_iter().collect() }
    }

    /// A whole streamed answer of these pieces of text, with token counts and end mark.
    pub fn answer(pieces: &[&str]) -> Self {
        Self::stream(pieces.iter().map(|text| Step::text(text)).chain(Self::ending(pieces.len())))
    }

    /// As [`answer`](Self::answer), with the gate before each piece and before the end.
    pub fn gated_answer(pieces: &[&str], gate: &Gate) -> Self {
        let wait = || Step::Wait(gate.clone());
        let paced = pieces.iter().flat_map(|text| [wait(), Step::text(text)]);
        Self::stream(paced.chain([wait()]).chain(Self::ending(pieces.len())))
    }

    /// What follows a text, in these pieces, with token counts and end mark.
    pub fn rest(pieces: &[&str]) -> Self {
        Self::stream(pieces.iter().map(|text| Step::rest(text)).chain(Self::ending(pieces.len())))
    }

    /// The same in one piece of JSON, with the tokens that the text had where they are told.
    pub fn whole_rest(text: &str, prompt_tokens: Option<usize>) -> Self {
        let usage = prompt_tokens.map(|count| json!({ "prompt_tokens": count, "completion_tokens": 1 }));
        let choices = json!([{ "index": 0, "text": text, "finish_reason": "length" }]);
        Self::json(200, &json!({ "object": "text_completion", "choices": choices, "usage": usage }))
    }

    fn ending(tokens: usize) -> [Step; 3] {
        [Step::finish("stop"), Step::usage(5, tokens), Step::done()]
    }

    /// A JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::body(status, "application/json", &[], &body.to_string())
    }

    /// The list of these models.
    pub fn models(names: &[&str]) -> Self {
        let data: Vec<Value> = names.iter().map(|name| json!({ "id": name, "object": "model" })).collect();
        Self::json(200, &json!({ "object": "list", "data": data }))
    }

    /// An error as OpenAI writes it.
    pub fn error(status: u16, message: &str) -> Self {
        Self::json(status, &json!({ "error": { "message": message, "type": "invalid_request_error" } }))
    }

    /// A web page.
    pub fn html(status: u16, page: &str) -> Self {
        Self::body(status, "text/html; charset=utf-8", &[], page)
    }

    /// Any body, with any further headers.
    pub fn body(status: u16, media_type: &str, headers: &[(&str, &str)], body: &str) -> Self {
        Self { head: head(status, media_type, headers), steps: vec![Step::Bytes(body.as_bytes().to_vec())] }
    }

    /// The same with one more step at its end.
    #[must_use]
    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// These bytes for head and body, as recorded from a real server.
    pub fn recorded(bytes: &[u8]) -> Self {
        Self { head: bytes.to_vec(), steps: Vec::new() }
    }

    /// Takes the request and never says a word.
    pub fn silence() -> Self {
        Self { head: Vec::new(), steps: vec![Step::Hang] }
    }

    /// Takes the request and resets the connection.
    pub fn reset() -> Self {
        Self { head: Vec::new(), steps: vec![Step::Reset] }
    }
}

/// The body is ended by closing the connection, so that every step's bytes go out as they are.
fn head(status: u16, media_type: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-type: {media_type}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// One request as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRequest {
    /// Method and path: `GET /v1/models`.
    pub route: String,
    /// Header names in lower case.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl RecordedRequest {
    /// The body as JSON.
    ///
    /// # Panics
    /// Where it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body of a recorded request is JSON")
    }
}

#[derive(Default)]
struct Script {
    key: Option<String>,
    routes: HashMap<String, VecDeque<Reply>>,
    requests: Vec<RecordedRequest>,
}

impl Script {
    fn reply(&mut self, request: &RecordedRequest) -> Reply {
        let wanted = self.key.as_ref().map(|key| format!("Bearer {key}"));
        if wanted.is_some() && request.headers.get("authorization") != wanted.as_ref() {
            return Reply::error(401, "Invalid API key");
        }
        match self.routes.get_mut(&request.route) {
            Some(replies) if replies.len() > 1 => replies.pop_front(),
            Some(replies) => replies.front().cloned(),
            None => None,
        }
        .unwrap_or_else(|| Reply::json(404, &json!({ "detail": "Not Found" })))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: usize,
    hang_ups: usize,
}

struct Shared {
    script: Mutex<Script>,
    counts: watch::Sender<Counts>,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server. Dropping it closes its port and resets every connection, as soon as the runtime comes to it.
pub struct FakeNode {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl FakeNode {
    /// The route of the list of models.
    pub const MODELS: &str = "GET /v1/models";
    /// The route of an answer.
    pub const CHAT: &str = "POST /v1/chat/completions";
    /// The route of what follows a plain text.
    pub const COMPLETIONS: &str = "POST /v1/completions";

    /// Starts a node on a free port of this machine that lists [`FAKE_MODEL`] and answers [`FAKE_ANSWER`].
    ///
    /// # Panics
    /// Where no port can be had, or outside a tokio runtime.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared { script: Mutex::default(), counts: watch::channel(Counts::default()).0 });
        let task = tokio::spawn(serve(listener, shared.clone()));
        let node = Self { address, shared, task };
        node.on(Self::MODELS, Reply::models(&[FAKE_MODEL]));
        node.on(Self::CHAT, Reply::answer(&FAKE_ANSWER));
        node
    }

    /// The base of its URLs: `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on replies this to each request of that route (`GET /path`).
    pub fn on(&self, route: &str, reply: Reply) {
        self.shared.script().routes.insert(route.to_owned(), VecDeque::from([reply]));
    }

    /// Replies this once the replies before it have been used; the last one stays.
    pub fn then(&self, route: &str, reply: Reply) {
        self.shared.script().routes.entry(route.to_owned()).or_default().push_back(reply);
    }

    /// From now on answers with 401 to whoever doesn't bring this key.
    pub fn require_key(&self, key: &str) {
        self.shared.script().key = Some(key.to_owned());
    }

    /// All requests so far, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.script().requests.clone()
    }

    /// The requests of that route so far.
    pub fn requests_of(&self, route: &str) -> Vec<RecordedRequest> {
        self.requests().into_iter().filter(|request| request.route == route).collect()
    }

    /// Waits until that many requests have come in since the start.
    pub async fn wait_for_requests(&self, count: usize) {
        self.wait(|counts| counts.requests >= count).await;
    }

    /// Waits until clients have closed that many connections before their reply was over.
    pub async fn wait_for_hang_ups(&self, count: usize) {
        self.wait(|counts| counts.hang_ups >= count).await;
    }

    /// Stops the node as dropping it does, and returns when nothing listens on its port any more.
    pub async fn stop(mut self) {
        self.task.abort();
        // An aborted task ends with an error, which is what was asked for.
        let _ = (&mut self.task).await;
    }

    async fn wait(&self, is_enough: impl FnMut(&Counts) -> bool) {
        self.shared.counts.subscribe().wait_for(is_enough).await.expect("the node itself holds the sender");
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Ends every connection with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, shared.clone()));
    }
}

async fn connection(mut stream: TcpStream, shared: Arc<Shared>) {
    // Until the reply is over, going away is a reset: closing in order is said explicitly.
    if stream.set_zero_linger().is_err() || stream.set_nodelay(true).is_err() {
        return;
    }
    let Some(request) = read_request(&mut stream).await else { return };
    let reply = {
        let mut script = shared.script();
        script.requests.push(request.clone());
        script.reply(&request)
    };
    shared.counts.send_modify(|counts| counts.requests += 1);
    let (mut reader, mut writer) = stream.split();
    let played = tokio::select! {
        played = play(&reply, &mut writer) => played,
        () = closed(&mut reader) => Played::HungUp,
    };
    match played {
        Played::Whole => {
            let _ = writer.shutdown().await;
            // The other side's close is awaited, or the reset of a dropped socket could overtake the last bytes.
            closed(&mut reader).await;
        }
        Played::Reset => {}
        Played::HungUp => shared.counts.send_modify(|counts| counts.hang_ups += 1),
    }
}

enum Played {
    Whole,
    Reset,
    HungUp,
}

async fn play(reply: &Reply, writer: &mut (impl AsyncWriteExt + Unpin)) -> Played {
    if writer.write_all(&reply.head).await.is_err() {
        return Played::HungUp;
    }
    for step in &reply.steps {
        match step {
            Step::Bytes(bytes) => {
                if writer.write_all(bytes).await.is_err() {
                    return Played::HungUp;
                }
            }
            Step::Wait(gate) => gate.wait().await,
            Step::Reset => return Played::Reset,
            Step::Hang => std::future::pending().await,
        }
    }
    Played::Whole
}

/// Waits until the client has closed the connection; what it still sends is thrown away.
async fn closed(reader: &mut (impl AsyncReadExt + Unpin)) {
    let mut buffer = [0; 256];
    while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

async fn read_request(stream: &mut TcpStream) -> Option<RecordedRequest> {
    let mut bytes = Vec::new();
    let head_len = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = std::str::from_utf8(&bytes[..head_len]).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let route = format!("{} {}", words.next()?, words.next()?);
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(Some(0), |value| value.parse().ok())?;
    let mut body = bytes.split_off(head_len + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(RecordedRequest { route, headers, body })
}
