//! Scaled dot product attention: one query, and tiles of queries.

use crate::{Fields, Number, ORDERS, Random, error};
use half::f16;
use metal_emulator::{Buffer, Fault, Launch, Order, library};

/// Queries (heads, queries, dim), keys and values (kv_heads, keys, dim); several heads share keys.
pub(crate) struct Case<T> {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) dim: usize,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    pub(crate) is_causal: bool,
    /// Finite values behind K and V, for a kernel that reads past their end.
    pub(crate) spare_keys: usize,
}

impl<T: Number> Case<T> {
    pub(crate) fn new(queries: usize, keys: usize, dim: usize, is_causal: bool) -> Self {
        let (heads, kv_heads) = (4, 2);
        let mut random = Random::new((queries + keys * dim) as u64);
        let (q, k, v) = (
            random.numbers(heads * queries * dim),
            random.numbers(kv_heads * keys * dim),
            random.numbers(kv_heads * keys * dim),
        );
        Self { heads, kv_heads, queries, keys, dim, q, k, v, is_causal, spare_keys: 0 }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    pub(crate) fn expected(&self) -> Vec<f64> {
        let row = |x: &[T], index: usize| x[index * self.dim..][..self.dim].iter().map(|x| x.f64()).collect::<Vec<_>>();
        let mut output = Vec::new();
        for (head, query) in (0..self.heads).flat_map(|head| (0..self.queries).map(move |query| (head, query))) {
            let first_key = head / (self.heads / self.kv_heads) * self.keys;
            let seen = if self.is_causal { query + self.keys - self.queries + 1 } else { self.keys };
            let q = row(&self.q, head * self.queries + query);
            let dot = |k: Vec<f64>| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * f64::from(self.scale());
            let scores: Vec<f64> = (0..seen).map(|key| dot(row(&self.k, first_key + key))).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut mixed = vec![0.0; self.dim];
            for (key, weight) in weights.iter().enumerate() {
                mixed.iter_mut().zip(row(&self.v, first_key + key)).for_each(|(mixed, v)| *mixed += weight / sum * v);
            }
            output.extend(mixed);
        }
        output
    }

    fn output(&self) -> Buffer {
        Buffer::new(self.q.len() * size_of::<T>())
    }

    fn padded(&self, values: &[T]) -> Buffer {
        let mut values = values.to_vec();
        values.resize(values.len() + self.spare_keys * self.dim, T::of(0.0));
        Buffer::from_slice(&values)
    }

    /// One query a head.
    pub(crate) fn vector(&self, dtype: &str, order: Order) -> Result<Buffer, Fault> {
        let name = format!("sdpa_vector_{dtype}_{}", self.dim);
        let y = self.output();
        Launch::new(library("candle/scaled_dot_product_attention").unwrap(), &name)
            .threadgroups([1, self.heads as u32, 1], [1024, 1, 1])
            .buffer(0, &Buffer::from_slice(&self.q), 0)
            .buffer(1, &Buffer::from_slice(&self.k), 0)
            .buffer(2, &Buffer::from_slice(&self.v), 0)
            .buffer(3, &y, 0)
            .value(4, &((self.heads / self.kv_heads) as i32))
            .value(5, &(self.keys as i32))
            .value(6, &(self.keys * self.dim))
            .value(7, &(self.keys * self.dim))
            .value(8, &self.scale())
            .value(9, &1f32)
            .constant(20, false)
            .order(order)
            .run()?;
        Ok(y)
    }

    /// Tiles of 32 queries.
    pub(crate) fn full(&self, dtype: &str, order: Order) -> Result<Buffer, Fault> {
        let Self { heads, kv_heads, queries, keys, dim, .. } = *self;
        let (bq, bk) = (32, if dim < 128 { 32 } else { 16 });
        let name = format!("steel_attention_{dtype}_bq{bq}_bk{bk}_bd{dim}_wm4_wn1_mask{dtype}");
        let parameters = Fields::default()
            .i32(&[1, heads, dim, queries, keys, heads / kv_heads])
            .f32(&[self.scale(), 1.0])
            .i32(&[queries.div_ceil(bq), keys.div_ceil(bk), queries / bq, keys / bk, queries % bq, keys % bk])
            .i32(&[keys - queries])
            .i64(&[heads * queries * dim, queries * dim, dim])
            .i64(&[kv_heads * keys * dim, keys * dim, dim])
            .i64(&[kv_heads * keys * dim, keys * dim, dim])
            .i64(&[heads * queries * dim, queries * dim, dim]);
        let y = self.output();
        Launch::new(library("candle/scaled_dot_product_attention").unwrap(), &name)
            .threadgroups([queries.div_ceil(bq) as u32, heads as u32, 1], [32, 4, 1])
            .buffer(0, &Buffer::from_slice(&self.q), 0)
            .buffer(1, &self.padded(&self.k), 0)
            .buffer(2, &self.padded(&self.v), 0)
            .buffer(3, &y, 0)
            .bytes(4, parameters.bytes())
            .constant(200, queries.is_multiple_of(bq))
            .constant(201, keys.is_multiple_of(bk))
            .constant(300, false)
            .constant(301, self.is_causal)
            .order(order)
            .run()?;
        Ok(y)
    }
}

fn check<T: Number>(vector: &str, full: &str, tolerance: f64) {
    let (mut worst, mut cases) = (0f64, 0);
    for (dim, order) in [64, 128].into_iter().flat_map(|dim| ORDERS.map(|order| (dim, order))) {
        let case = Case::<T>::new(1, 77, dim, false);
        let mut errors = vec![error::<T>(&case.vector(vector, order).unwrap(), &case.expected())];
        for (queries, keys, is_causal) in [(64, 64, false), (50, 83, true)] {
            let mut case = Case::<T>::new(queries, keys, dim, is_causal);
            // Without them it reads out of bounds: see `findings.rs`.
            case.spare_keys = if is_causal { 64 } else { 0 };
            errors.push(error::<T>(&case.full(full, order).unwrap(), &case.expected()));
        }
        worst = errors.iter().copied().fold(worst, f64::max);
        assert!(worst < tolerance, "{full}, {dim}, {order:?}: {errors:?}");
        cases += errors.len();
    }
    println!("{full}: {cases} comparisons, worst error {worst:.1e}");
}

#[test]
fn attention_of_f32_matches() {
    check::<f32>("float", "float32", 2e-6);
}

#[test]
fn attention_of_f16_matches() {
    check::<f16>("float16_t", "float16", 4e-3);
}
