use crate::LoadError;
use crate::gguf::{Gguf, Metadata};

/// Values of one architecture, whose keys begin with its name.
pub(super) struct Keys<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) architecture: &'a str,
}

/// No width, length or count of a model is this large, but for its context; keeps every product of three in range.
const LARGEST: u64 = 1 << 20;
const LONGEST_CONTEXT: u64 = 1 << 28;

impl Keys<'_> {
    fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.gguf.header.tensors.contains_key(name)
    }

    /// A whole number; of one that differs by layer, its value for `layer`.
    pub(super) fn of_layer(&self, key: &str, layer: usize) -> Result<Option<usize>, LoadError> {
        let key = self.key(key);
        let n = match self.metadata().array(&key) {
            None => self.metadata().unsigned(&key),
            Some(array) => {
                let numbers = array.numbers(&self.gguf.map);
                // Negative and fractional numbers become what is refused below, or 0.
                numbers.and_then(|numbers| numbers.get(layer).map(|n| *n as u64))
            }
        };
        let largest = if key.ends_with("context_length") { LONGEST_CONTEXT } else { LARGEST };
        match n {
            Some(n) if n > largest => Err(LoadError::UnsupportedFeature(format!("`{key}` of {n}"))),
            n => Ok(n.map(|n| n as usize)),
        }
    }

    pub(super) fn optional(&self, key: &str) -> Result<Option<usize>, LoadError> {
        if self.metadata().array(&self.key(key)).is_some() {
            return Err(LoadError::UnsupportedFeature(format!("`{}` that differs by layer", self.key(key))));
        }
        self.of_layer(key, 0)
    }

    /// A number above zero, where it is there.
    pub(super) fn positive(&self, key: &str) -> Result<Option<usize>, LoadError> {
        Ok(self.optional(key)?.filter(|n| *n > 0))
    }

    /// A number that is there and not zero.
    pub(super) fn number(&self, key: &str) -> Result<usize, LoadError> {
        self.positive(key)?.ok_or_else(|| LoadError::Missing(self.key(key)))
    }

    /// A number for `layer` that is there and not zero.
    pub(super) fn number_of_layer(&self, key: &str, layer: usize) -> Result<usize, LoadError> {
        self.of_layer(key, layer)?.filter(|n| *n > 0).ok_or_else(|| LoadError::Missing(self.key(key)))
    }

    /// Layers that are run: those that predict more than the next token stand at the end and are not.
    pub(super) fn layers(&self) -> Result<usize, LoadError> {
        let layers = self.number("block_count")?.saturating_sub(self.optional("nextn_predict_layers")?.unwrap_or(0));
        let most_layers = self.gguf.header.tensors.len();
        if layers == 0 || layers > most_layers {
            return Err(LoadError::UnsupportedFeature(format!("{layers} layers in {most_layers} tensors")));
        }
        Ok(layers)
    }

    /// A number above zero, which may differ by layer.
    pub(super) fn float_of_layer(&self, key: &str, layer: usize) -> Option<f32> {
        let Some(array) = self.metadata().array(&self.key(key)) else { return self.float(key) };
        let value = *array.numbers(&self.gguf.map)?.get(layer)? as f32;
        (value.is_finite() && value > 0.0).then_some(value)
    }

    /// A number above zero.
    pub(super) fn float(&self, key: &str) -> Option<f32> {
        let value = self.metadata().float(&self.key(key))? as f32;
        (value.is_finite() && value > 0.0).then_some(value)
    }

    pub(super) fn needed_float(&self, key: &str) -> Result<f32, LoadError> {
        self.float(key).ok_or_else(|| LoadError::Missing(self.key(key)))
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.metadata().text(&self.key(key))
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.metadata().bool(&self.key(key))
    }

    /// A list of claims, one for each layer.
    pub(super) fn flags(&self, key: &str) -> Option<Vec<bool>> {
        self.metadata()
            .array(&self.key(key))?
            .numbers(&self.gguf.map)
            .map(|list| list.iter().map(|n| *n != 0.0).collect())
    }
}
