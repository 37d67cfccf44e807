//! Every family against its reference: tiny random models with the logits that `transformers` gives in float32
//! (tests/tools/oracles.md says how they were made).
//!
//! `TIDEGATE_ORACLES=DIR cargo test -p engine --test oracles -- --nocapture` takes another folder of the same layout: a
//! folder for each model with `model-f32.gguf` or `model.safetensors` or both, `input_ids.json` and `logits.npy`.
//! `cargo xtask metal-test` runs them on candle's Metal backend, with `TIDEGATE_BRIEFLY` because that is slow.

mod republish;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, ensure};
use candle_core::Tensor;
use engine::{EvaluatedSequence, Evaluator, KvType, ModelHeader, Unwritten, read_header};

/// Absolute, on logits whose standard deviation is 1.2 to 6, with keys and values as they are computed.
const TOLERANCE: f32 = 1e-3;
/// The same where a GPU keeps them in f16, which rounds each by up to 2⁻¹¹ of itself.
const F16_TOLERANCE: f32 = 3e-2;

/// Tokens of the beginning of each model's text that are run where every access to memory is checked.
const BEGINNING: usize = 9;

/// Of rounded keys and values: in half of the positions no logit is further off, in standard deviations of the position's
/// logits.
const ROUNDED: [(KvType, f32); 2] = [(KvType::F16, 0.005), (KvType::Q8, 0.1)];
/// The share of positions with the same best token.
const ROUNDED_AGREEMENT: f32 = 0.9;

struct Oracle {
    header: ModelHeader,
    model: Evaluator,
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
    kv_type: KvType,
    worst: f32,
}

impl Oracle {
    /// The model in `path`, which is in the folder or is the folder itself.
    fn open(folder: &Path, path: &Path, kv_type: KvType) -> anyhow::Result<Self> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| name.to_owned());
        let is_folder = path == folder;
        let unwritten = if is_folder { Unwritten::default() } else { unwritten(&read("config.json")?)? };
        Ok(Self {
            header: read_header(path)?,
            model: Evaluator::open(path, unwritten)?,
            tokens: serde_json::from_str(&read("input_ids.json")?)?,
            logits: Tensor::read_npy(folder.join("logits.npy"))?.to_vec2()?,
            kv_type,
            worst: 0.0,
        })
    }

    fn check(&mut self) -> anyhow::Result<()> {
        let len = self.tokens.len();
        self.check_parts(&[len], &mut self.sequence()).context("one prefill")?;
        self.check_parts(&[7, 1, 13, 2, len - 23], &mut self.sequence()).context("chunks of odd sizes")?;
        self.check_parts(&vec![1; len], &mut self.sequence()).context("token by token")?;
        self.check_trimmed().context("trimmed and run again")?;
        self.check_taken_back().context("a few tokens taken back")?;
        self.check_copied().context("copied")?;
        self.check_batch().context("in a batch")?;
        self.check_cache_size().context("size of the cache")
    }

    /// [`Self::check`] with a fifth of the forwards, for a device that is emulated.
    fn check_briefly(&mut self) -> anyhow::Result<()> {
        let len = self.tokens.len();
        self.check_parts(&[len], &mut self.sequence()).context("one prefill")?;
        let parts = [7, 1, 13, 2, len - 27, 1, 1, 1, 1];
        self.check_parts(&parts, &mut self.sequence()).context("chunks of odd sizes, then token by token")?;
        self.check_trimmed().context("trimmed and run again")?;
        self.check_batch().context("in a batch")
    }

    /// A short prompt and a token after it.
    fn check_beginning(&mut self) -> anyhow::Result<()> {
        let parts = [BEGINNING - 1, 1];
        self.check_parts(&parts, &mut self.sequence())
    }

    fn sequence(&self) -> EvaluatedSequence {
        self.model.sequence(self.kv_type)
    }

    /// What the header predicts is what is allocated, for as many tokens as there are.
    fn check_cache_size(&mut self) -> anyhow::Result<()> {
        let mut sequence = self.sequence();
        for _ in 0..3 {
            self.model.logits(&mut [(&self.tokens, &mut sequence)])?;
            sequence.checkpoint();
        }
        self.compare_size(&sequence, self.kv_type)
    }

    fn compare_size(&self, sequence: &EvaluatedSequence, kv_type: KvType) -> anyhow::Result<()> {
        let (predicted, found) = (self.header.footprint(sequence.len(), kv_type).kv_cache, sequence.allocated());
        ensure!(predicted == found, "{predicted} predicted, {found} allocated");
        Ok(())
    }

    /// With keys and values rounded so: how far the logits of each position are off at most, in standard deviations of
    /// them, in order of size; and for which share of the positions the same token is the best.
    fn measure_rounded(&mut self, kv_type: KvType) -> anyhow::Result<(Vec<f32>, f32)> {
        let mut sequence = self.model.sequence(kv_type);
        let (mut differences, mut alike) = (Vec::new(), 0);
        // Token by token, so that everything but a token itself comes out of the cache.
        for (token, expected) in self.tokens.iter().zip(&self.logits) {
            let found = self.model.logits(&mut [(&[*token], &mut sequence)])?.remove(0);
            differences.push(largest_difference(&found, expected) / deviation(expected));
            alike += usize::from(argmax(&found) == argmax(expected));
        }
        for _ in 0..2 {
            sequence.checkpoint();
            self.model.logits(&mut [(&self.tokens, &mut sequence)])?;
        }
        self.compare_size(&sequence, kv_type).context("size of the cache")?;
        differences.sort_by(f32::total_cmp);
        Ok((differences, alike as f32 / self.tokens.len() as f32))
    }

    /// Runs the tokens after `sequence` in parts of these lengths, and compares the logits of every position.
    fn check_parts(&mut self, parts: &[usize], sequence: &mut EvaluatedSequence) -> anyhow::Result<()> {
        for len in parts {
            let at = sequence.len();
            let logits = self.model.logits(&mut [(&self.tokens[at..at + len], sequence)])?;
            for (i, found) in logits.iter().enumerate() {
                self.compare(found, at + i)?;
            }
            sequence.checkpoint();
        }
        Ok(())
    }

    fn check_trimmed(&mut self) -> anyhow::Result<()> {
        let (len, mut sequence) = (self.tokens.len(), self.sequence());
        self.check_parts(&[len / 4, len - len / 4], &mut sequence)?;
        let (noise, mut left) = (self.noise(), len / 3);
        // Twice: what came after a checkpoint must not have changed it.
        for _ in 0..2 {
            self.model.logits(&mut [(&noise, &mut sequence)])?;
            let kept = sequence.trim(left);
            ensure!(kept <= left && kept == sequence.len());
            ensure!(kept >= len / 4, "only {kept} tokens are left, though there was a checkpoint at {}", len / 4);
            left = kept;
        }
        self.check_parts(&[len - left], &mut sequence)
    }

    fn check_taken_back(&mut self) -> anyhow::Result<()> {
        let (len, noise, mut sequence) = (self.tokens.len(), self.noise(), self.sequence());
        self.model.logits(&mut [(&self.tokens[..len / 2], &mut sequence)])?;
        for left in [len / 2 - 2, len / 3, 3] {
            self.model.logits(&mut [(&noise[..11], &mut sequence)])?;
            let left = sequence.trim(left);
            self.check_parts(&[len / 2 - left], &mut sequence)?;
        }
        self.check_parts(&[len - len / 2], &mut sequence)
    }

    /// Copies of a beginning, and of a sequence while it goes on, have nothing of each other.
    fn check_copied(&mut self) -> anyhow::Result<()> {
        let (len, mut sequence) = (self.tokens.len(), self.sequence());
        self.check_parts(&[len / 4, len / 2 - len / 4], &mut sequence)?;
        for at in [len / 4, len / 2] {
            let mut copy = sequence.copy(at)?.with_context(|| format!("no copy of {at} tokens"))?;
            let mut noisy = sequence.copy(at)?.with_context(|| format!("no second copy of {at} tokens"))?;
            self.model.logits(&mut [(&self.noise()[..40], &mut noisy)])?;
            self.check_parts(&[3, len - at - 3], &mut copy)?;
        }
        self.check_parts(&[len - len / 2], &mut sequence)
    }

    /// With other sequences before and after, at other positions, of other lengths.
    fn check_batch(&mut self) -> anyhow::Result<()> {
        let [mut whole, mut started, mut other] = [(); 3].map(|()| self.sequence());
        self.model.logits(&mut [(&self.tokens[..5], &mut started)])?;
        let (noise, len) = (self.noise(), self.tokens.len());
        let logits = self.model.logits(&mut [
            (&noise[..9], &mut other),
            (&self.tokens, &mut whole),
            (&self.tokens[5..6], &mut started),
        ])?;
        for (i, found) in logits[9..9 + len].iter().enumerate() {
            self.compare(found, i)?;
        }
        self.compare(&logits[9 + len], 5)
    }

    fn noise(&self) -> Vec<u32> {
        self.tokens.iter().rev().copied().collect()
    }

    fn compare(&mut self, found: &[f32], position: usize) -> anyhow::Result<()> {
        let expected = &self.logits[position];
        ensure!(found.len() == expected.len(), "{} logits instead of {}", found.len(), expected.len());
        let difference = largest_difference(found, expected);
        let tolerance = if self.kv_type == KvType::F32 { TOLERANCE } else { F16_TOLERANCE };
        ensure!(difference < tolerance, "position {position} differs by {difference}");
        ensure!(argmax(found) == argmax(expected), "position {position}: another token is the best");
        self.worst = self.worst.max(difference);
        Ok(())
    }
}

fn argmax(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

/// NaN where there is one: it must not be lost in a maximum.
fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst: f32, d| if d <= worst { worst } else { d })
}

/// The standard deviation of a position's logits.
fn deviation(logits: &[f32]) -> f32 {
    let mean = logits.iter().sum::<f32>() / logits.len() as f32;
    (logits.iter().map(|logit| (logit - mean).powi(2)).sum::<f32>() / logits.len() as f32).sqrt()
}

/// What the configuration says and GGUF doesn't.
fn unwritten(config: &str) -> anyhow::Result<Unwritten> {
    let config: serde_json::Value = serde_json::from_str(config)?;
    let chunk = config["attention_chunk_size"].as_u64().map(usize::try_from).transpose()?;
    Ok(Unwritten { yarn_truncate: config["rope_parameters"]["truncate"].as_bool(), attention_chunk: chunk })
}

/// The folder from the environment, or the fixture unpacked.
fn oracles() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TIDEGATE_ORACLES") {
        return Ok(folder.into());
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oracles");
    // Once for all tests, which run side by side.
    static IS_UNPACKED: Mutex<bool> = Mutex::new(false);
    let mut is_unpacked = IS_UNPACKED.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_unpacked {
        return Ok(folder);
    }
    let packed = fs::File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracles.tar.zst"))?;
    let mut unpacked = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(packed)?.read_to_end(&mut unpacked)?;
    tar::Archive::new(unpacked.as_slice()).unpack(&folder)?;
    *is_unpacked = true;
    Ok(folder)
}

/// The forms in which a folder has its model.
fn models_of(folder: &Path) -> impl Iterator<Item = (&Path, PathBuf)> {
    let gguf = folder.join("model-f32.gguf");
    let published = folder.join("model.safetensors").exists().then(|| folder.to_owned());
    gguf.exists().then_some(gguf).into_iter().chain(published).map(move |path| (folder, path))
}

/// The folders of all models, by name.
fn families() -> anyhow::Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(oracles()?)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    folders.sort();
    Ok(folders)
}

/// Opens every model and checks it with keys and values of one type. All that fail are told of.
#[expect(clippy::print_stdout, reason = "the table is what a person runs this for")]
fn check_all(kv_type: KvType, check: impl Fn(&mut Oracle) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let folders = families()?;
    let models: Vec<(&Path, PathBuf)> = folders.iter().flat_map(|folder| models_of(folder)).collect();
    ensure!(!models.is_empty(), "no models to compare");
    let mut failed = Vec::new();
    println!("{:<28} {:>10}  tokens, {kv_type:?}, on {}", "model", "worst", engine::device_name());
    for (folder, path) in models {
        let kind = if path == folder { " (folder)" } else { "" };
        let name = format!("{}{kind}", folder.file_name().unwrap_or_default().to_string_lossy());
        let start = Instant::now();
        let checked = Oracle::open(folder, &path, kv_type).and_then(|mut oracle| check(&mut oracle).map(|()| oracle));
        let seconds = start.elapsed().as_secs_f32();
        match checked {
            Ok(oracle) => println!("{name:<28} {:>10.1e}  {}  {seconds:.1} s", oracle.worst, oracle.tokens.len()),
            Err(error) => {
                println!("{name:<28}     FAILED  {error:#}");
                failed.push(format!("{name}: {error:#}"));
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[test]
fn every_family_agrees_with_its_reference() -> anyhow::Result<()> {
    match std::env::var_os("TIDEGATE_BRIEFLY") {
        Some(_) => check_all(KvType::DEFAULT, Oracle::check_briefly),
        None => check_all(KvType::F32, Oracle::check),
    }
}

#[test]
fn every_family_begins_well() -> anyhow::Result<()> {
    check_all(KvType::DEFAULT, Oracle::check_beginning)
}

/// The families whose oracle is a GGUF file alone: their published form is made from it.
#[test]
fn what_gguf_was_made_from_agrees_too() -> anyhow::Result<()> {
    let folder = oracles()?;
    let mut checked = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let source = entry?.path();
        let config: serde_json::Value = serde_json::from_str(&fs::read_to_string(source.join("config.json"))?)?;
        let gguf = source.join("model-f32.gguf");
        let is_known = config["model_type"].as_str().is_some_and(|family| republish::FAMILIES.contains(&family));
        if !is_known || !gguf.exists() {
            continue;
        }
        let published = tempfile::tempdir()?;
        republish::republish(&gguf, &config, published.path())?;
        for name in ["input_ids.json", "logits.npy"] {
            fs::copy(source.join(name), published.path().join(name))?;
        }
        // Not all have one, and the numbers of the words are all that counts here.
        fs::copy(folder.join("llama/tokenizer.json"), published.path().join("tokenizer.json"))?;
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut oracle = Oracle::open(published.path(), published.path(), KvType::F32).with_context(|| name.clone())?;
        oracle.check_parts(&[oracle.tokens.len()], &mut oracle.sequence()).with_context(|| name.clone())?;
        oracle.header.check_supported().with_context(|| name.clone())?;
        println!("{name:<28} {:>10.1e}  {}", oracle.worst, oracle.header.architecture);
        checked.push(name);
    }
    ensure!(checked.len() >= 12, "only {checked:?}");
    Ok(())
}

/// The middle position is judged, not the worst: where a small difference makes a router choose another expert, models
/// of random weights jump, and so do the positions that see this one.
#[test]
fn rounded_caches_stay_close() -> anyhow::Result<()> {
    let mut failed = Vec::new();
    println!("{:<20} {:>4} {:>10} {:>10}  same best token", "model", "", "median", "worst");
    for folder in families()? {
        let Some((_, path)) = models_of(&folder).next() else { continue };
        let mut oracle = Oracle::open(&folder, &path, KvType::F32)?;
        for (kv_type, tolerance) in ROUNDED {
            let name = format!("{:<20} {kv_type:?}", folder.file_name().unwrap_or_default().to_string_lossy());
            let (differences, alike) = oracle.measure_rounded(kv_type).with_context(|| name.clone())?;
            let (median, worst) = (differences[differences.len() / 2], differences[differences.len() - 1]);
            println!("{name:<25} {median:>10.1e} {worst:>10.1e}  {:>5.1} %", 100.0 * alike);
            // A NaN must fail.
            if !(median < tolerance && alike > ROUNDED_AGREEMENT) {
                failed.push(format!("{name}: off by {median}, {alike} of the best tokens the same"));
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// What one token reads, against counts by hand from the published configurations: all in f32, with 64 hidden values, 320
/// words, and keys and values of 2 heads of 16 unless said.
#[test]
fn bytes_of_a_token_are_as_counted_by_hand() -> anyhow::Result<()> {
    const F32: u64 = 4;
    const KV: u64 = 2 * 2 * 16 * F32;
    let check = |name: &str, depth: usize, weights: Option<u64>, cache: u64| -> anyhow::Result<()> {
        let header = read_header(&oracles()?.join(name).join("model-f32.gguf"))?;
        let found = |depth| header.bytes_per_token(depth, KvType::F32).0;
        let grown = found(depth) - found(0);
        ensure!(grown == cache, "{name}: {grown} more after {depth} tokens, not {cache}");
        let beside = |weights: u64| found(0) - F32 * weights;
        let layers = weights.map(beside);
        ensure!(layers.is_none_or(|first| first == 3 * KV), "{name}: {layers:?} beside the weights");
        Ok(())
    };
    // Three layers: attention with norms of queries and keys, a router, 2 of 8 experts 32 wide; head and embedding row.
    let attention = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 2 * 16;
    let experts = 8 * 64 + 2 * 3 * 32 * 64;
    let weights = 3 * (attention + experts + 2 * 64) + 64 + 320 * 64 + 64;
    check("qwen3_moe", 40, Some(weights), 3 * 40 * KV)?;
    // Five layers look back over 16 tokens, the sixth over all.
    check("gemma3", 40, None, (5 * 15 + 40) * KV)?;
    // Two of three layers have windows, the third heads of 32; three more read what these three store.
    check("gemma4_e", 40, None, 2 * (2 * 15 + 2 * 40) * KV)?;
    // States don't grow: one layer of four attends.
    check("qwen3_5", 40, None, 40 * KV)?;
    // Four windows of 16 keys of 32; in two layers 8 of 25 blocks of 4 tokens, and the 64 values that each is chosen by;
    // no block of 128 tokens is whole.
    check("deepseek_v4", 100, None, F32 * (4 * 15 * 32 + 2 * (8 * 32 + 25 * 64)))
}
