use app::{AppError, ErrorCode};
use axum::extract::Request;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use wire::openai::{ErrorBody, RequestError};
use wire::{anthropic, ollama, openai};

use crate::{MESSAGES, OLLAMA};

/// By this word, and Anthropic's agents by the start of the sentence, a conversation is known as one to be shortened.
const CONTEXT_FULL: &str = "context_length_exceeded";
/// What a client is told to wait before it asks a full server again: about a short answer, since the end of one makes
/// room.
pub(crate) const SECONDS_TO_WAIT: u64 = 2;
/// The same of a server that is being stopped: about a restart.
pub(crate) const SECONDS_TO_RESTART: u64 = 10;
const DRAINING: &str = "draining";

/// The one place where errors become HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) body: ErrorBody,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, kind: &str, code: &str, message: impl Into<String>) -> Self {
        let body = ErrorBody {
            message: message.into(),
            kind: Some(kind.to_owned()),
            param: None,
            code: Some(code.to_owned()),
        };
        Self { status, body }
    }

    pub(crate) fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "not_found", message)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "This path wants another method.";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", message)
    }

    pub(crate) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "invalid_request_error", "forbidden", message)
    }

    pub(crate) fn draining() -> Self {
        let message = "This server is being stopped: it ends the answers that it has begun, and takes no more.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", DRAINING, message)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "The key is missing or wrong: send it as `Authorization: Bearer KEY`, or as `x-api-key`.";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }
}

impl From<BytesRejection> for Failure {
    /// The body didn't come whole, or is too large.
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), "invalid_request_error", "bad_request", rejection.body_text())
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        let mut failure = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "bad_request", error.message);
        failure.body.param = error.param;
        failure
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        let (status, kind) = match error.code {
            ErrorCode::BadRequest | ErrorCode::ContextFull => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            ErrorCode::NotFound | ErrorCode::NoModel => (StatusCode::NOT_FOUND, "invalid_request_error"),
            ErrorCode::DoesNotFit | ErrorCode::Busy => (StatusCode::SERVICE_UNAVAILABLE, "server_error"),
            ErrorCode::NodeUnreachable | ErrorCode::NodeUnauthorized | ErrorCode::NodeFailed | ErrorCode::CutOff => {
                (StatusCode::BAD_GATEWAY, "server_error")
            }
            ErrorCode::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "server_error"),
            ErrorCode::BadFile | ErrorCode::EngineFailed | ErrorCode::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "server_error")
            }
        };
        let code = match error.code {
            ErrorCode::NotFound | ErrorCode::NoModel => "model_not_found",
            ErrorCode::ContextFull => CONTEXT_FULL,
            code => code.as_str(),
        };
        Self::new(status, kind, code, error.to_string())
    }
}

impl IntoResponse for Failure {
    /// Without a body: [`in_dialect`] knows the path, and writes it.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes every failure in the shape that is read at its path: Anthropic's, Ollama's, or OpenAI's everywhere else.
pub(crate) async fn in_dialect(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let encode: fn(StatusCode, &ErrorBody) -> Vec<u8> = if path.starts_with(MESSAGES) {
        |status, body| match body.code.as_deref() {
            Some(CONTEXT_FULL) => {
                anthropic::encode_error(status.as_u16(), &format!("prompt is too long: {}", body.message))
            }
            _ => anthropic::encode_error(status.as_u16(), &body.message),
        }
    } else if path.starts_with(OLLAMA) {
        |_, body| ollama::encode_error(&body.message).into_bytes()
    } else {
        |_, body| openai::encode_error(body)
    };
    let mut response = next.run(request).await;
    let Some(Failure { status, body }) = response.extensions_mut().remove() else { return response };
    let mut response = (status, [(CONTENT_TYPE, "application/json")], encode(status, &body)).into_response();
    let wait = match body.code.as_deref() {
        Some(DRAINING) => Some(SECONDS_TO_RESTART),
        code => (code == Some(ErrorCode::Busy.as_str())).then_some(SECONDS_TO_WAIT),
    };
    if let Some(seconds) = wait {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}
