//! What `tidegate bench` measures, small: that it works, not how fast.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use app::chat::{Bytes, Finish, FinishReason, Timings, Usage};
use app::{App, AppConfig, OffloadMode, PressureEnd, PressurePlan};

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

fn starter() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
    assert!(path.exists(), "the starter model is missing: run `make setup`, which fetches it");
    path
}

async fn start(data: &Path) -> App {
    let config = AppConfig {
        data_dir: data.to_owned(),
        models: vec![starter()],
        offload: Some(OffloadMode::LocalOnly),
        ..AppConfig::default()
    };
    App::start(config).await.unwrap()
}

/// Resident memory of a process, which Linux has in a file; `None` elsewhere.
fn resident(pid: u32) -> Option<Bytes> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(Bytes(line.split_whitespace().next()?.parse::<u64>().ok()? << 10))
}

#[test]
fn memory_is_held_until_whoever_asked_is_gone() {
    let most = Bytes::mib(64).0.to_string();
    let mut child = Command::new(TIDEGATE)
        .args(["hold-memory", "--most", &most])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut orders, mut replies) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut hold = |bytes: Bytes| {
        writeln!(orders, "{}", bytes.0).unwrap();
        Bytes(replies.next().unwrap().unwrap().parse().unwrap())
    };
    assert_eq!(hold(Bytes::mib(32)), Bytes::mib(32));
    assert!(resident(child.id()).is_none_or(|resident| resident >= Bytes::mib(32)));
    assert_eq!(hold(Bytes::gib(4)), Bytes::mib(64), "never more than it was started for");
    assert_eq!(hold(Bytes::mib(8)), Bytes::mib(8));
    drop(orders);
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn answers_are_measured_while_memory_is_taken() {
    let data = tempfile::tempdir().unwrap();
    let app = start(data.path()).await;
    let plan = PressurePlan {
        undisturbed: 1,
        step: Bytes::mib(16),
        most: Bytes::mib(32),
        most_swap: Bytes::gib(1),
        step_time: Duration::from_millis(300),
    };
    let mut command = tokio::process::Command::new(TIDEGATE);
    command.args(["hold-memory", "--most", &plan.most.0.to_string()]);
    let mut told = 0;
    let curve = app.measure_pressure(&plan, true, command, |_| told += 1).await.unwrap();
    assert_eq!(curve.steps.len(), told);
    assert!(curve.end != PressureEnd::AllTaken || told == 3);
    for (step, taken) in curve.steps.iter().zip([0, 16, 32]) {
        assert_eq!(step.taken, Bytes::mib(taken));
        assert_eq!(step.place, "Here");
        assert!(step.available.is_some() && step.failure.is_none(), "{step:?}");
    }
    assert!(curve.steps[0].tokens_per_sec > 0.0);
    app.shutdown().await;
}

#[tokio::test]
async fn a_calibration_is_kept_and_learns_from_answers() {
    let data = tempfile::tempdir().unwrap();
    let app = start(data.path()).await;
    assert_eq!(app.calibration(), None);
    let measured = app.calibrate(None).await.unwrap();
    assert!(measured.eta > 0.0 && measured.bandwidth_bytes_per_sec > 0.0 && measured.prefill_flops_per_sec > 0.0);
    app.shutdown().await;

    let app = start(data.path()).await;
    let kept = app.calibration().unwrap();
    assert_eq!(kept.measured_on, measured.measured_on);
    // Ten times as fast as it was: the figures go a tenth of the way.
    let finish = Finish {
        reason: FinishReason::Stop,
        usage: Some(Usage { prompt_tokens: 200, cached_tokens: 0, completion_tokens: 100 }),
        timings: Timings {
            ttft: None,
            prefill_tokens_per_sec: None,
            decode_tokens_per_sec: Some(10.0 * kept.decode_tokens_per_sec),
            guessed_tokens: 0,
        },
    };
    app.note_speed(&kept.model, &finish);
    let learnt = app.calibration().unwrap();
    assert!((learnt.decode_tokens_per_sec / kept.decode_tokens_per_sec - 1.9).abs() < 1e-6);
    assert!(learnt.eta > kept.eta);
    assert_eq!(learnt.prefill_flops_per_sec, kept.prefill_flops_per_sec);
    app.note_speed("no such model", &finish);
    assert_eq!(app.calibration().unwrap(), learnt);
    app.shutdown().await;
}

#[test]
fn speed_by_depth_is_told_as_json_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("speed.svg");
    let output = Command::new(TIDEGATE)
        .args(["bench", "--depth", "0,48", "--pp", "16", "--tg", "6", "--runs", "1", "--sustained", "0", "--json"])
        .arg("--model")
        .arg(starter())
        .arg("--svg")
        .arg(&svg)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["quantization"], &json["prefill_tokens"]), (&"Q4_K_M".into(), &16.into()));
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["depth"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(48)]);
    for figure in ["prefill_tokens_per_sec", "decode_tokens_per_sec", "bandwidth_ratio"] {
        assert!(rows.iter().all(|row| row[figure].as_f64().is_some_and(|value| value > 0.0)), "{figure}: {json}");
    }
    assert_eq!(json["sustained"], serde_json::json!([]));
    let picture = std::fs::read_to_string(svg).unwrap();
    for row in &rows.iter().map(|row| row["decode_tokens_per_sec"].as_f64().unwrap()).collect::<Vec<_>>() {
        let figure = if *row < 100.0 { format!("{row:.1}<") } else { format!("{row:.0}<") };
        assert!(picture.contains(&figure), "{figure} in {picture}");
    }
}
