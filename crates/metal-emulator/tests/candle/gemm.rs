//! MLX's tiled product of matrices: tiles, transposes, ragged edges and batches. Without full checks, under which it is
//! stopped: it reads `addmm_params`, unused, where a function constant switches that argument off.

use crate::{Fields, Number, ORDERS, Random, error};
use half::f16;
use metal_emulator::{Buffer, Checks, Launch, library};

/// Rows, columns and depth of a tile, and its SIMD-groups by rows and columns.
const TILES: [[usize; 5]; 5] =
    [[32, 32, 16, 2, 2], [64, 64, 16, 2, 2], [64, 64, 16, 1, 2], [64, 32, 32, 2, 2], [32, 64, 16, 1, 2]];

/// (batch, rows, columns) from matrices (batch, rows, columns), by the columns of the first.
fn product<T: Number>(a: &[T], b: &[T], [batch, m, n, k]: [usize; 4]) -> Vec<f64> {
    let mut sums = vec![0.0; batch * m * n];
    for (index, sum) in sums.iter_mut().enumerate() {
        let (batch, row, column) = (index / (m * n), index / n % m, index % n);
        *sum = (0..k).map(|i| a[(batch * m + row) * k + i].f64() * b[(batch * k + i) * n + column].f64()).sum();
    }
    sums
}

fn transposed<T: Number>(matrices: &[T], rows: usize, columns: usize) -> Vec<T> {
    let transpose =
        |matrix: &[T]| (0..rows * columns).map(|i| matrix[i % rows * columns + i / rows]).collect::<Vec<_>>();
    matrices.chunks(rows * columns).flat_map(transpose).collect()
}

fn check<T: Number>(dtype: &str, tolerance: f64) {
    let (mut worst, mut cases) = (0f64, 0);
    for [bm, bn, bk, wm, wn] in TILES {
        for (is_a_transposed, is_b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
            for [batch, m, n, k] in [[1, 64, 64, 64], [2, 45, 70, 50]] {
                let mut random = Random::new((m * n) as u64);
                let (a, b): (Vec<T>, Vec<T>) = (random.numbers(batch * m * k), random.numbers(batch * k * n));
                let expected = product(&a, &b, [batch, m, n, k]);
                let letter = |is_transposed| if is_transposed { 't' } else { 'n' };
                let (ta, tb) = (letter(is_a_transposed), letter(is_b_transposed));
                let name = format!("gemm_{ta}{tb}_{dtype}_{dtype}_{bm}_{bn}_{bk}_{wm}_{wn}");
                let a = Buffer::from_slice(&if is_a_transposed { transposed(&a, m, k) } else { a });
                let b = Buffer::from_slice(&if is_b_transposed { transposed(&b, k, n) } else { b });
                let (lda, ldb) = (if is_a_transposed { m } else { k }, if is_b_transposed { k } else { n });
                let (tiles_n, tiles_m) = (n.div_ceil(bn), m.div_ceil(bm));
                let parameters = Fields::default()
                    .i32(&[m, n, k, lda, ldb, n, tiles_n, tiles_m])
                    .i64(&[m * k, n * k, m * n])
                    .i32(&[0, k / bk, 1, 0]);
                for order in ORDERS {
                    let y = Buffer::new(batch * m * n * size_of::<T>());
                    Launch::new(library("candle/mlx_gemm").unwrap(), &name)
                        .threadgroups([tiles_n as u32, tiles_m as u32, batch as u32], [32, wn as u32, wm as u32])
                        .buffer(0, &a, 0)
                        .buffer(1, &b, 0)
                        .buffer(3, &y, 0)
                        .bytes(4, parameters.bytes())
                        .value(6, &(batch as i32))
                        .value(7, &[m * k, n * k])
                        .constant(10, batch > 1)
                        .constant(100, false)
                        .constant(110, false)
                        .constant(200, m % bm == 0)
                        .constant(201, n % bn == 0)
                        .constant(202, k % bk == 0)
                        .constant(300, false)
                        .order(order)
                        .checks(Checks::Fast)
                        .run()
                        .unwrap();
                    let error = error::<T>(&y, &expected);
                    assert!(error < tolerance, "{name}, {batch} × {m} × {n} × {k}, {order:?}: {error}");
                    worst = worst.max(error);
                    cases += 1;
                }
            }
        }
    }
    println!("{dtype}: {cases} comparisons, worst error {worst:.1e}");
}

#[test]
fn products_of_f32_match() {
    check::<f32>("f32", 1e-6);
}

#[test]
fn products_of_f16_match() {
    check::<f16>("f16", 1e-3);
}
