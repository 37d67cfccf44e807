//! Softmax, norms, sums and argmax over rows. They guard threadgroup memory with `mem_none` (`findings.rs`), so they run
//! without the race check.

use crate::{ORDERS, Random, error};
use metal_emulator::{Buffer, Checks, Launch, Order, library};

const SHAPES: [(usize, usize); 5] = [(5, 64), (4, 300), (3, 1000), (2, 4096), (3, 17)];
const EPSILON: f32 = 1e-5;

struct Case {
    rows: usize,
    len: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(rows: usize, len: usize) -> Self {
        let mut random = Random::new((rows * len) as u64);
        let x = random.numbers::<f32>(rows * len).into_iter().map(|x| 3.0 * x).collect();
        Self { rows, len, x, weight: random.numbers(len), bias: random.numbers(len) }
    }

    fn per_row(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let row = |row: &[f32]| f(&row.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        self.x.chunks(self.len).flat_map(row).collect()
    }

    fn launch<'a>(&self, kernel: &'a str, order: Order) -> Launch<'a> {
        let threads = 1024.min((self.len / 2).next_power_of_two()) as u32;
        Launch::new(library("candle/reduce").unwrap(), kernel)
            .threadgroups([self.rows as u32, 1, 1], [threads, 1, 1])
            .order(order)
            .checks(Checks::Fast)
    }

    /// Kernels from rows to rows of the same length.
    fn rows_to_rows(&self, kernel: &str, weights: &[&[f32]], has_epsilon: bool, order: Order) -> Buffer {
        let y = Buffer::new(4 * self.x.len());
        let mut launch = self
            .launch(kernel, order)
            .value(0, &(self.x.len() as u32))
            .value(1, &(self.len as u32))
            .buffer(2, &Buffer::from_slice(&self.x), 0)
            .buffer(3, &y, 0);
        let mut index = 4;
        for weight in weights {
            launch = launch.buffer(index, &Buffer::from_slice(weight), 0);
            index += 1;
        }
        if has_epsilon {
            launch = launch.value(index, &EPSILON);
        }
        launch.run().unwrap();
        y
    }

    fn reduction(&self, kernel: &str, order: Order) -> Buffer {
        let y = Buffer::new(4 * self.rows);
        self.launch(kernel, order)
            .value(0, &(self.x.len() as u32))
            .value(1, &2u32)
            .buffer(2, &Buffer::from_slice(&[self.rows as u32, self.len as u32]), 0)
            .value(3, &(self.len as u32))
            .buffer(4, &Buffer::from_slice(&self.x), 0)
            .buffer(5, &y, 0)
            .run()
            .unwrap();
        y
    }
}

fn mean(row: &[f64]) -> f64 {
    row.iter().sum::<f64>() / row.len() as f64
}

#[test]
fn rows_match_their_references() {
    let (mut worst, mut cases) = (0f64, 0);
    for (rows, len) in SHAPES {
        let case = Case::new(rows, len);
        let softmax = case.per_row(|row| {
            let max = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
            row.iter().map(|x| (x - max).exp() / sum).collect()
        });
        let scaled = |row: &[f64], mean: f64| -> Vec<f64> {
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (variance + f64::from(EPSILON)).sqrt();
            row.iter().zip(&case.weight).map(|(x, weight)| (x - mean) * scale * f64::from(*weight)).collect()
        };
        let rms_norm = case.per_row(|row| scaled(row, 0.0));
        let layer_norm = case.per_row(|row| {
            scaled(row, mean(row)).iter().zip(&case.bias).map(|(x, bias)| x + f64::from(*bias)).collect()
        });
        let sum = case.per_row(|row| vec![row.iter().sum()]);
        let argmax = case.per_row(|row| vec![(0..len).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as f64]);
        for order in ORDERS {
            let errors = [
                error::<f32>(&case.rows_to_rows("softmax_f32", &[], false, order), &softmax),
                error::<f32>(&case.rows_to_rows("rmsnorm_f32", &[&case.weight], true, order), &rms_norm),
                error::<f32>(
                    &case.rows_to_rows("layernorm_f32", &[&case.weight, &case.bias], true, order),
                    &layer_norm,
                ),
                error::<f32>(&case.reduction("fast_sum_f32", order), &sum),
            ];
            let indices: Vec<u32> = case.reduction("fast_argmax_f32", order).read();
            assert_eq!(indices.iter().map(|index| f64::from(*index)).collect::<Vec<_>>(), argmax);
            worst = errors.into_iter().fold(worst, f64::max);
            assert!(worst < 1e-6, "{rows} rows of {len}, {order:?}: {errors:?}");
            cases += errors.len() + 1;
        }
    }
    println!("{cases} comparisons, worst error {worst:.1e}");
}
