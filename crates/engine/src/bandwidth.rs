//! How fast the memory is that the engine computes from.

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use chat::Bytes;

use crate::{GenerateError, device};

/// Passes over the buffer, of which the median counts: the first finds pages and clocks cold, others are disturbed by
/// what else runs.
const PASSES: usize = 9;
/// A GPU takes orders faster than it is told that they are done, so one pass is several copies.
const COPIES: usize = 4;

/// How fast the device that models run on moves memory, in bytes per second: on the CPU all threads read `buffer` bytes,
/// on a GPU half of them is copied to the other half, and what is read and what is written count both. A buffer that
/// isn't several times as large as the caches measures the caches. Takes about a second; blocks.
///
/// # Errors
/// When there is no memory for the buffer on the device.
pub fn measure_bandwidth(buffer: Bytes) -> Result<f64, GenerateError> {
    let bytes = usize::try_from(buffer.0).unwrap_or(usize::MAX);
    let mut passes = match device::open() {
        Device::Cpu => read_on_cpu(bytes),
        device => copy_on_gpu(&device, bytes / 2)?,
    };
    passes.sort_unstable_by(f64::total_cmp);
    Ok(passes[passes.len() / 2])
}

fn read_on_cpu(bytes: usize) -> Vec<f64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let words = (bytes / size_of::<u64>() / threads).max(1);
    let mut parts: Vec<Vec<u64>> = Vec::new();
    // Each thread writes its own part first: pages exist once they are written, near the core that wrote them.
    std::thread::scope(|scope| {
        let filled: Vec<_> = (0..threads).map(|seed| scope.spawn(move || vec![seed as u64 + 1; words])).collect();
        parts.extend(filled.into_iter().filter_map(|part| part.join().ok()));
    });
    let read = parts.len() * words * size_of::<u64>();
    let pass = || {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for part in &parts {
                scope.spawn(|| black_box(sum(part)));
            }
        });
        per_second(read, started.elapsed())
    };
    (0..PASSES).map(|_| pass()).collect()
}

/// In lanes, so that the additions wait for memory and not for each other.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0_u64; 16];
    for chunk in words.chunks_exact(lanes.len()) {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

fn copy_on_gpu(device: &Device, bytes: usize) -> Result<Vec<f64>, GenerateError> {
    let values = (bytes / DType::F32.size_in_bytes()).max(1);
    let (from, to) = (Tensor::ones(values, DType::F32, device)?, Tensor::zeros(values, DType::F32, device)?);
    let pass = || {
        device.synchronize()?;
        let started = Instant::now();
        for _ in 0..COPIES {
            to.slice_set(&from, 0, 0)?;
        }
        device.synchronize()?;
        Ok(per_second(2 * COPIES * values * DType::F32.size_in_bytes(), started.elapsed()))
    };
    (0..PASSES).map(|_| kernels::step(pass)).collect()
}

fn per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_at_some_speed() {
        let speed = measure_bandwidth(Bytes::mib(16)).unwrap();
        println!("{:.1} GB/s", speed / 1e9);
        assert!(speed > 1e8, "{speed}");
        // What is too small to be shared out is still something.
        assert!(measure_bandwidth(Bytes(1)).unwrap() > 0.0);
    }

    /// What runs on a GPU, on the CPU.
    #[test]
    fn copies_are_timed() {
        assert!(copy_on_gpu(&Device::Cpu, 1 << 20).unwrap().iter().all(|speed| *speed > 0.0));
    }
}
