//! Rotary positions in `config.json`, as `transformers/modeling_rope_utils.py` reads them. Versions before 5 call the
//! object `rope_scaling` and keep the base beside it.

use serde_json::{Map, Value};

use super::config::{Config, Family};
use super::{CONFIG, MadeTensors, json};
use crate::LoadError;
use crate::gguf::{MetadataWriter, shorten};

/// The parameters of one kind of layer.
struct Rope<'a> {
    config: &'a Config,
    own: Option<&'a Map<String, Value>>,
}

/// Writes the keys of positions, and makes the tensors that GGUF tells some kinds of scaling with.
///
/// # Errors
/// Names a kind of scaling that isn't known, or what it lacks.
pub(super) fn describe(
    config: &Config,
    family: Family,
    metadata: &mut MetadataWriter,
    made: &mut MadeTensors,
) -> Result<(), LoadError> {
    let architecture = family.architecture();
    let key = |key: &str| format!("{architecture}.rope.{key}");
    let published = config.get("rope_parameters").or_else(|| config.get("rope_scaling")).and_then(Value::as_object);
    let of_layers = |kind: &str| published.and_then(|published| published.get(kind)).and_then(Value::as_object);
    let rope = Rope { config, own: of_layers("full_attention").or(published) };

    let base = rope.float("rope_theta").or_else(|| config.default_float(family, "rope_theta")).unwrap_or(10_000.0);
    metadata.set(&key("freq_base"), base);
    let share = rope.float("partial_rotary_factor").or_else(|| config.float("partial_rotary_factor")).unwrap_or(1.0);
    let dims = config.head_dim(family)? as f64 * share;
    metadata.set(&key("dimension_count"), dims as u64);
    if family == Family::Gemma3 {
        let windowed = Rope { config, own: of_layers("sliding_attention") };
        if windowed.kind() != "default" {
            return Err(LoadError::UnsupportedFeature("scaling of the positions in windows".to_owned()));
        }
        let base = windowed.float("rope_theta").or_else(|| config.float("rope_local_base_freq"));
        metadata.set(&key("freq_base_swa"), base.unwrap_or(10_000.0));
    }
    match rope.kind() {
        "default" => {}
        "linear" => {
            metadata.set(&key("scaling.type"), "linear");
            metadata.set(&key("scaling.factor"), rope.needed("factor")?);
        }
        "llama3" => made.add("rope_freqs.weight", &rope.llama3_factors(base as f32, dims as usize)?),
        "yarn" => {
            metadata.set(&key("scaling.type"), "yarn");
            metadata.set(&key("scaling.factor"), rope.needed("factor")?);
            metadata.set(&key("scaling.original_context_length"), rope.original_context()? as u64);
            metadata.set(&key("scaling.yarn_beta_fast"), rope.float("beta_fast").unwrap_or(32.0));
            metadata.set(&key("scaling.yarn_beta_slow"), rope.float("beta_slow").unwrap_or(1.0));
            metadata.set(&key("scaling.yarn_truncate"), rope.flag("truncate").unwrap_or(true));
            metadata.set(&key("scaling.yarn_magnitude"), rope.yarn_magnitude()?);
        }
        "longrope" | "su" => {
            metadata.set(&key("scaling.original_context_length"), rope.original_context()? as u64);
            metadata.set(&key("scaling.attn_factor"), rope.longrope_magnitude()?);
            made.add("rope_factors_long.weight", &rope.factors("long_factor")?);
            made.add("rope_factors_short.weight", &rope.factors("short_factor")?);
        }
        other => return Err(LoadError::UnsupportedFeature(format!("rope scaling `{}`", shorten(other)))),
    }
    if let Some(scale) = rope.float("llama_4_scaling_beta").filter(|_| family == Family::Ministral3) {
        metadata.set(&format!("{architecture}.attention.temperature_scale"), scale);
        metadata.set(&key("scaling.original_context_length"), rope.original_context()? as u64);
    }
    Ok(())
}

impl Rope<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.own?.get(key).filter(|value| !value.is_null())
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    fn kind(&self) -> &str {
        self.get("rope_type").or_else(|| self.get("type")).and_then(Value::as_str).unwrap_or("default")
    }

    fn needed(&self, key: &str) -> Result<f64, LoadError> {
        self.float(key).ok_or_else(|| json::lacks(CONFIG, key))
    }

    /// Tokens that the model was first trained with.
    fn original_context(&self) -> Result<f64, LoadError> {
        const KEY: &str = "original_max_position_embeddings";
        let outside = || self.config.float(KEY).or_else(|| self.config.float("max_position_embeddings"));
        self.float(KEY).or_else(outside).map_or_else(|| self.needed(KEY), Ok)
    }

    /// How much longer the context is than the original one.
    fn stretch(&self) -> Result<f64, LoadError> {
        match self.float("factor") {
            Some(factor) => Ok(factor),
            None => Ok(self.config.float("max_position_embeddings").unwrap_or(0.0) / self.original_context()?),
        }
    }

    /// What divides each frequency in Llama 3.1: 1 for fast pairs, the whole factor for slow ones, in between a blend.
    fn llama3_factors(&self, base: f32, dims: usize) -> Result<Vec<f32>, LoadError> {
        // A head of more values is refused later.
        let dims = dims.min(1 << 16);
        let factor = self.needed("factor")? as f32;
        let (low, high) = (self.needed("low_freq_factor")? as f32, self.needed("high_freq_factor")? as f32);
        let original = self.original_context()? as f32;
        let of_pair = |pair: usize| {
            let frequency = base.powf(-(2.0 * pair as f32) / dims as f32);
            // Turns within the original context.
            let turns = original * frequency / (2.0 * std::f32::consts::PI);
            if turns > high {
                1.0
            } else if turns < low || low >= high {
                factor
            } else {
                let smooth = (turns - low) / (high - low);
                ((1.0 - smooth) / factor + smooth).recip()
            }
        };
        Ok((0..dims / 2).map(of_pair).collect())
    }

    fn yarn_magnitude(&self) -> Result<f64, LoadError> {
        if let Some(magnitude) = self.float("attention_factor") {
            return Ok(magnitude);
        }
        let factor = self.needed("factor")?;
        let magnified = |by: f64| if factor > 1.0 { 0.1 * by * factor.ln() + 1.0 } else { 1.0 };
        Ok(match (self.float("mscale"), self.float("mscale_all_dim")) {
            (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => magnified(scale) / magnified(all),
            _ => magnified(1.0),
        })
    }

    fn longrope_magnitude(&self) -> Result<f64, LoadError> {
        if let Some(magnitude) = self.float("attention_factor") {
            return Ok(magnitude);
        }
        let stretch = self.stretch()?;
        Ok(if stretch > 1.0 { (1.0 + stretch.ln() / self.original_context()?.ln()).sqrt() } else { 1.0 })
    }

    fn factors(&self, key: &str) -> Result<Vec<f32>, LoadError> {
        let missing = || json::lacks(CONFIG, key);
        let list = self.get(key).and_then(Value::as_array).ok_or_else(missing)?;
        list.iter().map(|factor| factor.as_f64().map(|factor| factor as f32).ok_or_else(missing)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(config: &str) -> (MetadataWriter, MadeTensors) {
        let (mut metadata, mut made) = (MetadataWriter::default(), MadeTensors::default());
        describe(&Config::of(config), Family::Llama, &mut metadata, &mut made).unwrap();
        (metadata, made)
    }

    #[test]
    fn llama_3_blends_its_factors() {
        let (_, made) = described(
            r#"{"head_dim": 128, "rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#,
        );
        let factors: Vec<f32> = made.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        // What llama.cpp's converter writes as `rope_freqs.weight` of Llama 3.1 8B.
        assert_eq!((factors.len(), factors[0], factors[28], factors[63]), (64, 1.0, 1.0, 8.0));
        assert!((factors[29] - 1.207_484).abs() < 1e-4, "{}", factors[29]);
        assert!((factors[34] - 5.257_327).abs() < 1e-4, "{}", factors[34]);
    }

    #[test]
    fn the_old_way_of_writing_means_the_same() {
        let old = r#"{"head_dim": 64, "rope_theta": 5000.0, "partial_rotary_factor": 0.5, "max_position_embeddings": 64,
            "original_max_position_embeddings": 16, "rope_scaling": {"type": "yarn", "factor": 4.0}}"#;
        let new = r#"{"head_dim": 64, "max_position_embeddings": 64, "rope_parameters": {"rope_type": "yarn", "factor": 4.0,
            "rope_theta": 5000.0, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 16}}"#;
        for config in [old, new] {
            let (metadata, _) = described(config).0.finish();
            assert_eq!(metadata.float("llama.rope.freq_base"), Some(5000.0));
            assert_eq!(metadata.unsigned("llama.rope.dimension_count"), Some(32));
            assert_eq!(metadata.unsigned("llama.rope.scaling.original_context_length"), Some(16));
            assert_eq!(metadata.float("llama.rope.scaling.yarn_magnitude"), Some(0.1 * 4_f64.ln() + 1.0));
        }
    }
}
