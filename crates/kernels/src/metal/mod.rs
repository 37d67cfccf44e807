//! What only Apple's GPUs have: kernels of our own, and memory that stays resident.

mod compiled;
mod delta_rule;
mod experts;
mod launch;
mod packed;

use std::ops::Deref;

use candle_core::{MetalDevice, Storage, Tensor};
use candle_metal_kernels::metal::{Buffer, Device, ResidencySet};
use objc2_metal::MTLResidencySet;

pub(crate) use delta_rule::delta_rule;
pub use experts::{ChosenExperts, PackedExperts, add_weighted};
pub(crate) use experts::{choose_experts, weigh_experts};
pub use packed::PackedTensor;

/// Apple's name for the family of this GPU, such as `applegpu_g16s`: an M4 Max.
pub fn architecture_name(device: &MetalDevice) -> String {
    let device: &Device = device.metal_device();
    device.architecture_name()
}

/// Weights in the GPU's memory, which stay allocated as long as this lives.
pub struct WeightBuffer(Buffer);

impl WeightBuffer {
    /// That of `weights`; `None` where they aren't in a GPU's memory.
    pub fn of_tensor(weights: &Tensor) -> Option<Self> {
        match weights.storage_and_layout().0.deref() {
            Storage::Metal(storage) => Some(Self(storage.buffer().clone())),
            Storage::Cpu(_) | Storage::Cuda(_) => None,
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.0.length()
    }
}

/// Weights that the GPU is asked to keep in memory between two steps.
///
/// candle has a set of its own for every buffer that it allocates, which it asks for once and never again, and which
/// nobody else can reach; macOS forgets such a request about a second after the last use. This one is asked for again
/// by [`Self::renew`].
pub struct ResidentBuffers {
    set: ResidencySet,
    buffers: Vec<WeightBuffer>,
    resident: usize,
}

impl ResidentBuffers {
    /// None of `buffers` is resident yet; `None` on systems before macOS 15, which have no such sets.
    pub fn new(device: &MetalDevice, buffers: Vec<WeightBuffer>) -> Option<Self> {
        let set = ResidencySet::new(device.metal_device());
        set.raw().is_some().then_some(Self { set, buffers, resident: 0 })
    }

    /// All of them, resident or not.
    pub fn buffers(&self) -> &[WeightBuffer] {
        &self.buffers
    }

    /// Asks for one more, by its index in [`Self::buffers`].
    pub fn add(&mut self, index: usize) {
        self.set.insert(&self.buffers[index].0);
        self.resident += 1;
        if self.resident == 1 {
            // Those that are added to a set that is resident become so at once.
            self.renew();
        }
    }

    /// Lets one go that was added.
    pub fn remove(&mut self, index: usize) {
        self.set.remove(&self.buffers[index].0);
        self.resident -= 1;
        if self.resident == 0
            && let Some(set) = self.set.raw()
        {
            set.endResidency();
        }
    }

    /// Asks again for those that were added, and waits until they are there.
    pub fn renew(&self) {
        if let Some(set) = self.set.raw().filter(|_| self.resident > 0) {
            set.requestResidency();
        }
    }
}
