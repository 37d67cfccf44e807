//! Which instruction set computes, found out once.

#![expect(unsafe_code, reason = "instructions that the processor was asked about are used")]

use std::sync::LazyLock;

use super::activations::{self, Group};
use super::blocks::*;
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::pack::Kind;
use super::product::{Task, multiply, unpack_row};
use super::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};

/// A set of instructions that there are products for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust.
    Reference,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// With VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// With the dot-product instructions.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Isa {
    /// Those that this processor has, the fastest last.
    pub(crate) fn available() -> Vec<Self> {
        #[cfg_attr(
            not(any(target_arch = "x86_64", target_arch = "aarch64")),
            expect(unused_mut, reason = "there are no others")
        )]
        let mut sets = vec![Self::Reference];
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            sets.extend(has_avx2.then_some(Self::Avx2));
            sets.extend((has_avx2 && has_avx512).then_some(Self::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        {
            sets.push(Self::Neon);
            sets.extend(std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self::NeonDot));
        }
        sets
    }

    /// The fastest, or the one that `TIDEGATE_CPU` names where the processor has it.
    pub(crate) fn chosen() -> Self {
        static CHOSEN: LazyLock<Isa> = LazyLock::new(|| {
            let available = Isa::available();
            let wished = std::env::var("TIDEGATE_CPU").unwrap_or_default();
            let named = available.iter().find(|isa| isa.name() == wished);
            *named.or(available.last()).expect("every processor runs the reference")
        });
        *CHOSEN
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => "neon-dot",
        }
    }

    /// Rounds `x` to as many groups as it has of 32 values.
    pub(crate) fn quantize(self, x: &[f32], groups: &mut [Group]) {
        match self {
            Self::Reference => activations::quantize(x, groups),
            // SAFETY: only sets that the processor has are made.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { quantize_avx2(x, groups) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { quantize_avx512(x, groups) },
            #[cfg(target_arch = "aarch64")]
            Self::Neon | Self::NeonDot => activations::quantize(x, groups),
        }
    }

    /// The weights of one row of `tile`.
    pub(crate) fn unpack_row(kind: Kind, tile: &[u8], row: usize, out: &mut [f32]) {
        match kind {
            Kind::Q4_0 => unpack_row::<Q4_0>(tile, row, out),
            Kind::Q4_1 => unpack_row::<Q4_1>(tile, row, out),
            Kind::Q5_0 => unpack_row::<Q5_0>(tile, row, out),
            Kind::Q5_1 => unpack_row::<Q5_1>(tile, row, out),
            Kind::Q8_0 => unpack_row::<Q8_0>(tile, row, out),
            Kind::Q2K => unpack_row::<Q2K>(tile, row, out),
            Kind::Q3K => unpack_row::<Q3K>(tile, row, out),
            Kind::Q4K => unpack_row::<Q4K>(tile, row, out),
            Kind::Q5K => unpack_row::<Q5K>(tile, row, out),
            Kind::Q6K => unpack_row::<Q6K>(tile, row, out),
            Kind::IQ4NL => unpack_row::<Iq4Nl>(tile, row, out),
            Kind::IQ4XS => unpack_row::<Iq4Xs>(tile, row, out),
            Kind::MXFP4 => unpack_row::<Mxfp4>(tile, row, out),
        }
    }

    /// Does `task` with tiles of `kind`.
    ///
    /// # Safety
    /// As [`multiply`] asks of the task's output.
    pub(crate) unsafe fn multiply(self, kind: Kind, task: &Task<'_>) {
        macro_rules! each_kind {
            ($multiply:ident) => {
                // SAFETY: only sets that the processor has are made; the output is as asked of the caller.
                unsafe {
                    match kind {
                        Kind::Q4_0 => $multiply::<Q4_0>(task),
                        Kind::Q4_1 => $multiply::<Q4_1>(task),
                        Kind::Q5_0 => $multiply::<Q5_0>(task),
                        Kind::Q5_1 => $multiply::<Q5_1>(task),
                        Kind::Q8_0 => $multiply::<Q8_0>(task),
                        Kind::Q2K => $multiply::<Q2K>(task),
                        Kind::Q3K => $multiply::<Q3K>(task),
                        Kind::Q4K => $multiply::<Q4K>(task),
                        Kind::Q5K => $multiply::<Q5K>(task),
                        Kind::Q6K => $multiply::<Q6K>(task),
                        Kind::IQ4NL => $multiply::<Iq4Nl>(task),
                        Kind::IQ4XS => $multiply::<Iq4Xs>(task),
                        Kind::MXFP4 => $multiply::<Mxfp4>(task),
                    }
                }
            };
        }
        match self {
            Self::Reference => each_kind!(reference),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => each_kind!(avx2),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => each_kind!(avx512),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => each_kind!(neon),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => each_kind!(neon_dot),
        }
    }
}

unsafe fn reference<B: Blocks>(task: &Task<'_>) {
    // SAFETY: as asked of the caller; the set has no instructions of its own.
    unsafe { multiply::<Scalar, B>(task) }
}

#[cfg(target_arch = "aarch64")]
unsafe fn neon<B: Blocks>(task: &Task<'_>) {
    // SAFETY: as asked of the caller; every 64-bit ARM has NEON.
    unsafe { multiply::<Neon<false>, B>(task) }
}

#[cfg(target_arch = "aarch64")]
unsafe fn neon_dot<B: Blocks>(task: &Task<'_>) {
    // SAFETY: as asked of the caller.
    unsafe { multiply::<Neon<true>, B>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<B: Blocks>(task: &Task<'_>) {
    // SAFETY: as asked of the caller.
    unsafe { multiply::<Avx2, B>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn avx512<B: Blocks>(task: &Task<'_>) {
    // SAFETY: as asked of the caller.
    unsafe { multiply::<Avx512, B>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_avx2(x: &[f32], groups: &mut [Group]) {
    activations::quantize(x, groups);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn quantize_avx512(x: &[f32], groups: &mut [Group]) {
    activations::quantize(x, groups);
}
