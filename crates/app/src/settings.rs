use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chat::Bytes;
use engine::KvType;
use routing::{OffloadMode, Policy, Trust};
use serde::{Deserialize, Serialize};
use vitals::ThermalState;

/// Everything the user can set, saved as one value. A field that an older version didn't know takes its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Where answers may run.
    #[serde(with = "offload_name")]
    pub offload: OffloadMode,
    /// The id of the chosen model; `None` until one is chosen, and then the first of the list is used.
    pub model: Option<String>,
    /// The context a model is loaded with, in tokens, where the model and the memory allow it.
    pub context_len: usize,
    /// How the engine keeps keys and values; `None` is as the device computes with them.
    #[serde(with = "kv_type_name")]
    pub kv_type: Option<KvType>,
    /// The user's own folder of models, beside those given at start.
    pub models_folder: PathBuf,
    /// Memory that is never given to a model, in bytes; `None` is the policy's own default for this machine.
    pub reserve_bytes: Option<u64>,
    /// Swap in use above this share of RAM sends answers to a node.
    pub max_swap_used_ratio: f64,
    /// Swap-in above this many bytes per second sends answers to a node.
    pub max_swap_in_per_sec: u64,
    /// Heat at or above this state sends answers to a node.
    #[serde(with = "thermal_name")]
    pub max_thermal: ThermalState,
    /// The drafts of models, by the ids of both; an empty one is none. For a model that isn't here one is chosen, where a
    /// listed one is small enough.
    pub drafts: BTreeMap<String, String>,
    /// Ids of models whose questions and answers never leave this machine.
    pub models_that_stay: Vec<String>,
    /// Nodes that are trusted less are never asked.
    #[serde(with = "trust_name")]
    pub least_trust: Trust,
    /// Whether the window serves the other programs of this machine.
    pub serves_programs: bool,
    /// Colours of the window.
    pub theme: Theme,
    /// Instructions put before every conversation; empty is none.
    pub system_prompt: String,
    /// Sampling temperature; `None` is the model's own or the engine's default.
    pub temperature: Option<f32>,
    /// Whether the window may offer to measure a machine that wasn't; false once the user has declined.
    pub offer_calibration: bool,
}

/// The colours of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Theme {
    /// As the system has it.
    #[default]
    System,
    /// Always light.
    Light,
    /// Always dark.
    Dark,
}

/// What a context may have, in tokens.
pub const CONTEXT_LENGTHS: std::ops::RangeInclusive<usize> = 256..=1_048_576;

impl Settings {
    pub(crate) fn defaults(data_dir: &Path) -> Self {
        let policy = Policy::default();
        Self {
            offload: OffloadMode::Auto,
            model: None,
            context_len: 8192,
            kv_type: None,
            models_folder: data_dir.join("models"),
            reserve_bytes: None,
            max_swap_used_ratio: policy.max_swap_used_ratio,
            max_swap_in_per_sec: policy.max_swap_in_per_sec.0,
            max_thermal: policy.max_thermal,
            drafts: BTreeMap::new(),
            models_that_stay: Vec::new(),
            least_trust: Trust::Rented,
            serves_programs: true,
            theme: Theme::System,
            system_prompt: String::new(),
            temperature: None,
            offer_calibration: true,
        }
    }

    /// How the engine is to keep keys and values.
    pub fn kv_type(&self) -> KvType {
        self.kv_type.unwrap_or_default()
    }

    /// Whether what is asked of a model, and what it answers, is for this machine only.
    pub fn keeps_here(&self, model: &str) -> bool {
        self.models_that_stay.iter().any(|stays| stays == model)
    }

    /// The values that make sense, or what is wrong with the others.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !CONTEXT_LENGTHS.contains(&self.context_len) {
            return Err(format!("A context of {} tokens is outside 256 to 1,048,576.", self.context_len));
        }
        if !(0.0..=1.0).contains(&self.max_swap_used_ratio) {
            return Err("The swap limit is a share of RAM between 0 and 100 %.".to_owned());
        }
        if self.temperature.is_some_and(|t| !(0.0..=5.0).contains(&t)) {
            return Err("The temperature lies between 0 and 5.".to_owned());
        }
        if self.models_folder.as_os_str().is_empty() {
            return Err("The models folder needs a path.".to_owned());
        }
        Ok(())
    }

    /// The routing policy that these settings ask for on a machine with so much RAM.
    pub fn policy(&self, ram: Option<Bytes>) -> Policy {
        let default = Policy::for_machine(ram);
        Policy {
            mode: self.offload,
            reserve: self.reserve_bytes.map_or(default.reserve, Bytes),
            max_swap_used_ratio: self.max_swap_used_ratio,
            max_swap_in_per_sec: Bytes(self.max_swap_in_per_sec),
            max_thermal: self.max_thermal,
            ..default
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::defaults(Path::new(""))
    }
}

mod offload_name {
    use routing::OffloadMode;
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
    pub(super) fn serialize<S: Serializer>(mode: &OffloadMode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match mode {
            OffloadMode::LocalOnly => "local_only",
            OffloadMode::Auto => "auto",
            OffloadMode::Remote => "remote",
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffloadMode, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "auto" => OffloadMode::Auto,
            "remote" => OffloadMode::Remote,
            // A name of a newer version falls back to the mode that keeps everything on this machine.
            _ => OffloadMode::LocalOnly,
        })
    }
}

mod trust_name {
    use routing::Trust;
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
    pub(super) fn serialize<S: Serializer>(trust: &Trust, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(trust.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Trust, D::Error> {
        // A name of a newer version falls back to the strictest.
        Ok(crate::trust::parse(&String::deserialize(deserializer)?).unwrap_or(Trust::Own))
    }
}

mod kv_type_name {
    use engine::KvType;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
    pub(super) fn serialize<S: Serializer>(kv_type: &Option<KvType>, serializer: S) -> Result<S::Ok, S::Error> {
        let name = kv_type.map(|kv_type| match kv_type {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8 => "q8",
        });
        name.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<KvType>, D::Error> {
        Ok(match Option::<String>::deserialize(deserializer)?.as_deref() {
            Some("f32") => Some(KvType::F32),
            Some("f16") => Some(KvType::F16),
            Some("q8") => Some(KvType::Q8),
            _ => None,
        })
    }
}

mod thermal_name {
    use serde::{Deserialize, Deserializer, Serializer};
    use vitals::ThermalState;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
    pub(super) fn serialize<S: Serializer>(state: &ThermalState, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match state {
            ThermalState::Nominal => "nominal",
            ThermalState::Fair => "fair",
            ThermalState::Serious => "serious",
            ThermalState::Critical => "critical",
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ThermalState, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "nominal" => ThermalState::Nominal,
            "fair" => ThermalState::Fair,
            "critical" => ThermalState::Critical,
            _ => ThermalState::Serious,
        })
    }
}
