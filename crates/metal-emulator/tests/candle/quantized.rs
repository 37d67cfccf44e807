//! Products with quantized weights: by a vector, and by a matrix in tiles.

use crate::blocks::{FORMATS, Format};
use crate::{ORDERS, Random, error};
use metal_emulator::{Buffer, Fault, Launch, Order, library};

/// Threads of a threadgroup, and rows that one computes, as candle's host code launches them. Q2_K's is 4 there, and
/// its kernel computes 8.
pub(crate) fn mat_vec_shape(format: &Format) -> ([u32; 3], usize) {
    match format.name {
        "q2_K" => ([2, 32, 1], 8),
        "q3_K" | "q5_K" => ([2, 32, 1], 4),
        "q4_K" => ([4, 8, 1], 4),
        "q6_K" => ([2, 32, 1], 2),
        _ => ([8, 8, 1], 8),
    }
}

/// `y` (columns, rows) from weights (rows, len) and `x` (columns, len).
pub(crate) struct Product<'a> {
    pub(crate) format: &'a Format,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) len: usize,
    pub(crate) weights: Buffer,
    pub(crate) x: Buffer,
    pub(crate) y: Buffer,
    expected: Vec<f64>,
}

impl<'a> Product<'a> {
    pub(crate) fn new(format: &'a Format, rows: usize, columns: usize, len: usize) -> Self {
        let (bytes, weights) = format.random(rows, len);
        let x: Vec<f32> = Random::new(len as u64).numbers(columns * len);
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        let expected = x.chunks(len).flat_map(|x| weights.chunks(len).map(move |w| dot(x, w))).collect();
        Self {
            format,
            rows,
            columns,
            len,
            weights: Buffer::from_slice(&bytes),
            x: Buffer::from_slice(&x),
            y: Buffer::new(4 * rows * columns),
            expected,
        }
    }

    pub(crate) fn error(&self) -> f64 {
        error::<f32>(&self.y, &self.expected)
    }

    pub(crate) fn mat_vec(&self, rows_per_threadgroup: usize, order: Order) -> Result<(), Fault> {
        let name = format!("kernel_mul_mv_{}_f32", self.format.name);
        let groups = [self.rows.div_ceil(rows_per_threadgroup) as u32, self.columns as u32, 1];
        let mut launch = Launch::new(library("candle/quantized").unwrap(), &name)
            .threadgroups(groups, mat_vec_shape(self.format).0)
            .buffer(0, &self.weights, 0)
            .buffer(1, &self.x, 0)
            .buffer(2, &self.y, 0)
            .value(17, &1u32)
            .value(18, &1u32);
        let sizes = [self.len, self.rows, 1, 0, 0, 0, self.len, self.columns, 1, 0, 0, 0, self.rows, self.columns];
        for (index, size) in (3..).zip(sizes) {
            launch = launch.value(index, &size);
        }
        launch.order(order).run()
    }

    pub(crate) fn mat_mul(&self, order: Order) -> Result<(), Fault> {
        let name = format!("kernel_mul_mm_{}_f32", self.format.name);
        let row_bytes = self.len / self.format.weights * self.format.bytes;
        let weights_bytes = row_bytes * self.rows;
        let (len, x_bytes) = (self.len, 4 * self.len * self.columns);
        let groups = [self.columns.div_ceil(32) as u32, self.rows.div_ceil(64) as u32, 1];
        let mut launch = Launch::new(library("candle/quantized").unwrap(), &name)
            .threadgroups(groups, [128, 1, 1])
            .threadgroup_memory(0, 8192)
            .buffer(0, &self.weights, 0)
            .buffer(1, &self.x, 0)
            .buffer(2, &self.y, 0)
            .value(15, &1u32)
            .value(16, &1u32);
        let sizes =
            [len, 1, row_bytes, weights_bytes, weights_bytes, 1, 4, 4 * len, x_bytes, x_bytes, self.rows, self.columns];
        for (index, size) in (3..).zip(sizes) {
            launch = launch.value(index, &size);
        }
        launch.order(order).run()
    }
}

#[test]
fn mat_vec_matches_with_every_format() {
    let (mut worst, mut cases) = (0f64, 0);
    for format in &FORMATS {
        for columns in [1, 2] {
            for order in ORDERS {
                let product = Product::new(format, 24, columns, 512);
                product.mat_vec(mat_vec_shape(format).1, order).unwrap();
                worst = worst.max(product.error());
                assert!(worst < 2e-6, "{}, {columns} columns, {order:?}: {worst}", format.name);
                cases += 1;
            }
        }
    }
    println!("{cases} comparisons, worst error {worst:.1e}");
}

/// The tile of weights is rounded to half precision.
#[test]
fn mat_mul_matches_with_every_format() {
    let (mut worst, mut cases) = (0f64, 0);
    for format in &FORMATS {
        for (rows, columns, len) in [(64, 32, 256), (96, 37, 512)] {
            for order in ORDERS {
                let product = Product::new(format, rows, columns, len);
                product.mat_mul(order).unwrap();
                worst = worst.max(product.error());
                assert!(worst < 1e-3, "{}, {columns} × {rows} × {len}, {order:?}: {worst}", format.name);
                cases += 1;
            }
        }
    }
    println!("{cases} comparisons, worst error {worst:.1e}");
}
