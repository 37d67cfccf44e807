use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

use candle_core::metal_backend::DeviceId;
use candle_core::{Device, MetalDevice, MetalError, Result, Tensor};
use candle_metal_kernels::metal::{ComputePipeline, Library};

use crate::packed::Packing;

/// A `.metal` file of this crate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    DeltaRule,
    Experts,
    Packed,
}

impl Source {
    const fn text(self) -> &'static str {
        match self {
            Self::DeltaRule => include_str!("delta_rule.metal"),
            Self::Experts => include_str!("experts.metal"),
            Self::Packed => include_str!("packed.metal"),
        }
    }
}

/// What is made once for a device: each file is compiled once, and each kernel made ready once.
#[derive(Default)]
struct Compiled {
    libraries: HashMap<Source, Library>,
    pipelines: HashMap<(Source, String), ComputePipeline>,
    codebooks: HashMap<Packing, Tensor>,
}

/// Of a device that was lost and opened anew, nothing is used again.
fn with_compiled<T>(device: &MetalDevice, take: impl FnOnce(&mut Compiled) -> Result<T>) -> Result<T> {
    static COMPILED: Mutex<Option<(DeviceId, Compiled)>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if compiled.as_ref().is_none_or(|(id, _)| *id != device.id()) {
        *compiled = None;
    }
    take(&mut compiled.get_or_insert_with(|| (device.id(), Compiled::default())).1)
}

/// The kernel `name` of `source`, ready to run on `device`.
pub(super) fn pipeline(device: &MetalDevice, source: Source, name: &str) -> Result<ComputePipeline> {
    with_compiled(device, |compiled| {
        let key = (source, name.to_owned());
        if let Some(pipeline) = compiled.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let metal = device.metal_device();
        let library = match compiled.libraries.entry(source) {
            Entry::Occupied(library) => library.into_mut(),
            Entry::Vacant(place) => {
                place.insert(metal.new_library_with_source(source.text(), None).map_err(MetalError::from)?)
            }
        };
        let function = library.get_function(name, None).map_err(MetalError::from)?;
        let pipeline = metal.new_compute_pipeline_state_with_function(&function).map_err(MetalError::from)?;
        compiled.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    })
}

/// The codebook of a packing, one byte where it has none: no buffer is empty.
pub(super) fn codebook(device: &MetalDevice, packing: Packing) -> Result<Tensor> {
    with_compiled(device, |compiled| {
        if let Some(codebook) = compiled.codebooks.get(&packing) {
            return Ok(codebook.clone());
        }
        let mut bytes = packing.codebook();
        bytes.resize(bytes.len().max(1), 0);
        let codebook = Tensor::from_slice(&bytes, bytes.len(), &Device::Metal(device.clone()))?;
        compiled.codebooks.insert(packing, codebook.clone());
        Ok(codebook)
    })
}
