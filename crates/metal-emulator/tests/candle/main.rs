//! candle's own kernels, unmodified, against plain references in f64, in three lane orders; and what the checks find in
//! them.
//!
//! Errors are the largest difference divided by the largest reference value.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, which may panic")]

mod attention;
mod blocks;
mod findings;
mod gemm;
mod quantized;
mod rows;

use half::f16;
use metal_emulator::{Buffer, Order, libraries};
use std::collections::BTreeMap;

pub(crate) const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Shuffled(12345)];

/// Numbers of a kernel's input and output.
pub(crate) trait Number: Copy {
    fn of(value: f64) -> Self;
    fn f64(self) -> f64;
}

impl Number for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }

    fn f64(self) -> f64 {
        self.into()
    }
}

impl Number for f16 {
    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }

    fn f64(self) -> f64 {
        self.to_f64()
    }
}

/// Pseudo-random numbers from -1 to 1, the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn number(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub(crate) fn numbers<T: Number>(&mut self, count: usize) -> Vec<T> {
        (0..count).map(|_| T::of(self.number())).collect()
    }
}

/// The relative error of a buffer's values, all of which must be numbers.
pub(crate) fn error<T: Number>(got: &Buffer, expected: &[f64]) -> f64 {
    let got: Vec<T> = got.read();
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|value| value.f64().is_finite()), "not all are numbers");
    let worst = got.iter().zip(expected).map(|(got, expected)| (got.f64() - expected).abs()).fold(0.0, f64::max);
    worst / expected.iter().fold(1e-30, |scale: f64, value| scale.max(value.abs()))
}

/// A kernel's parameters as a C struct: fields without padding that alignment doesn't ask for.
#[derive(Default)]
pub(crate) struct Fields(Vec<u8>);

impl Fields {
    pub(crate) fn i32(mut self, values: &[usize]) -> Self {
        self.0.extend(values.iter().flat_map(|value| (*value as i32).to_le_bytes()));
        self
    }

    pub(crate) fn f32(mut self, values: &[f32]) -> Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    pub(crate) fn i64(mut self, values: &[usize]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0.extend(values.iter().flat_map(|value| (*value as i64).to_le_bytes()));
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Every named kernel of candle's files is compiled and registered.
#[test]
fn all_files_are_compiled() {
    let kernels = |origin: &str| -> BTreeMap<&str, usize> {
        let of_origin = libraries().iter().filter(|library| library.name().starts_with(origin));
        of_origin.map(|library| (library.name(), library.kernels().len())).collect()
    };
    let candle = kernels("candle/");
    println!("{candle:?}");
    assert_eq!(candle.values().sum::<usize>(), 1734);
}
