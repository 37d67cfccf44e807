//! A GPU that fails while the engine answers: the request ends with a sentence that says what to do, the model is unloaded,
//! and the next request runs on a device that is opened anew, with the answer that it had before.

use std::path::Path;

use candle_metal_kernels::metal::{fail, opened};
use chat::{ChatEvent, ChatRequest, Message, Role, SamplingParams};
use engine::{DeviceFault, EngineConfig, EngineHandle, GenerateError, LoadSpec};
use futures::StreamExt;
use testkit::gguf::tiny_model;

const TIMEOUT: &str = "Caused GPU Timeout Error (00000002:kIOAccelCommandBufferCallbackErrorTimeout)";
const OUT_OF_MEMORY: &str = "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)";

async fn answer(engine: &EngineHandle, folder: &Path) -> Result<String, GenerateError> {
    let path = tiny_model(1).write(folder, "m.gguf").unwrap();
    let spec = LoadSpec::new(path, 256);
    let sampling =
        SamplingParams { temperature: Some(1.5), seed: Some(1), max_tokens: Some(12), ..SamplingParams::default() };
    let messages = vec![Message::new(Role::User, "Hi")];
    let mut events = engine.chat(spec, ChatRequest { messages, sampling, ..ChatRequest::default() });
    let mut text = String::new();
    while let Some(event) = events.next().await {
        if let ChatEvent::Text(part) | ChatEvent::Thinking(part) = event? {
            text.push_str(&part);
        }
    }
    Ok(text)
}

/// One test, since the device is the process's.
#[tokio::test]
async fn a_gpu_that_fails_costs_one_answer() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let before = answer(&engine, folder.path()).await.unwrap();
    assert!(!before.is_empty());
    let cases = [(TIMEOUT, DeviceFault::Timeout, "took too long"), (OUT_OF_MEMORY, DeviceFault::OutOfMemory, "shorter context")];
    for (description, fault, advice) in cases {
        // In the prompt, which the cache has but for its end; then in the middle of the answer.
        for dispatches in [0, 300] {
            let devices = opened();
            fail(dispatches, description);
            let error = answer(&engine, folder.path()).await.unwrap_err();
            assert!(matches!(error, GenerateError::Device(found) if found == fault), "{error:?}");
            assert!(error.to_string().contains(advice), "{error}");
            assert!(engine.loaded().is_none(), "nothing on the device can be trusted");
            assert_eq!(answer(&engine, folder.path()).await.unwrap(), before);
            assert_eq!(opened(), devices + 1);
        }
    }
    engine.shutdown().await;
}
