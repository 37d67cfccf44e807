use std::time::Duration;

/// Why a node gave no answer, or not a whole one. Messages never hold a key.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The address or the key can't be one.
    #[error("{why}")]
    BadAddress {
        /// What is wrong with it.
        why: String,
    },
    /// The request has no leave to go to this node.
    #[error("the request may not go to this node")]
    NoLeave,
    /// No connection came about, or it was closed before any answer.
    #[error("{why}")]
    Unreachable {
        /// What was found instead.
        why: String,
        /// What the network said, where it said anything.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The node wants a key, or another one.
    #[error("the node wants a key, or another one than this")]
    Unauthorized,
    /// The node doesn't have the model.
    #[error("the node has no model `{model}`")]
    ModelMissing {
        /// As it was asked for.
        model: String,
        /// What the node said.
        sentence: Option<String>,
    },
    /// The node has too much to do, or is still loading.
    #[error("the node is busy{}", after_colon(sentence.as_deref()))]
    Busy {
        /// When to come back, where the node says so.
        retry_after: Option<Duration>,
        /// What the node said.
        sentence: Option<String>,
    },
    /// The node answered with an error.
    #[error("the node answered with status {status}{}", after_colon(sentence.as_deref()))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the node said.
        sentence: Option<String>,
    },
    /// The node said in the middle of an answer that it can't go on.
    #[error("the node failed in the middle of the answer: {sentence}")]
    Failed {
        /// What the node said.
        sentence: String,
    },
    /// Something answers, but not as a node does.
    #[error("{why}")]
    NotANode {
        /// What was found instead.
        why: String,
    },
    /// The answer ended before its end: the connection broke, or the node stopped.
    #[error("the answer broke off in the middle")]
    CutOff,
    /// The connection stands, but nothing came.
    #[error("{silence}, and nothing came for {} s; {}", after.as_secs_f64(), silence.advice())]
    TimedOut {
        /// How long was waited.
        after: Duration,
        /// How far the node had come.
        silence: Silence,
    },
}

/// Where a node fell silent while its connection stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It took the request, and no reply began.
    BeforeReply,
    /// Its reply began, and no part of the answer came.
    BeforeAnswer,
    /// Parts of the answer had come.
    InAnswer,
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BeforeReply => "the node took the request",
            Self::BeforeAnswer => "the node began its reply without a word of the answer",
            Self::InAnswer => "the node stopped in the middle of the answer",
        })
    }
}

impl Silence {
    /// What the user can do about it.
    fn advice(self) -> &'static str {
        match self {
            Self::BeforeReply | Self::BeforeAnswer => {
                "it may be loading its model or reading a long prompt: look at it, then ask again"
            }
            Self::InAnswer => "it may hang or be asleep: look at it, or ask again elsewhere",
        }
    }
}

fn after_colon(sentence: Option<&str>) -> String {
    sentence.map(|sentence| format!(": {sentence}")).unwrap_or_default()
}

impl NodeError {
    pub(crate) fn not_a_node(why: impl Into<String>) -> Self {
        Self::NotANode { why: why.into() }
    }

    /// What the network's error means, for one that came before any answer.
    pub(crate) fn unreachable(error: reqwest::Error, connect_timeout: Duration) -> Self {
        let error = error.without_url();
        let why = if error.is_connect() && error.is_timeout() {
            format!("no connection came about within {} s", connect_timeout.as_secs_f64())
        } else {
            reason(&error).to_owned()
        };
        Self::Unreachable { why, source: Some(Box::new(error)) }
    }
}

fn reason(error: &reqwest::Error) -> &'static str {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = tls_error(error) {
            return match tls {
                rustls::Error::InvalidCertificate(_) => "its certificate is not one that this machine trusts",
                _ => "it doesn't speak https as it should",
            };
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            match io.kind() {
                std::io::ErrorKind::ConnectionRefused => return "nothing listens on that port",
                std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
                    return "there is no way to it in this network";
                }
                std::io::ErrorKind::TimedOut => return "it doesn't respond",
                _ => {}
            }
        }
        // The resolver's error has no type of its own that could be asked for.
        if error.to_string().starts_with("dns error") {
            return "its name is not known in this network";
        }
        cause = error.source();
    }
    if error.is_connect() { "no connection came about" } else { "it closed the connection without an answer" }
}

fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let inner = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
    inner.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref())
}
