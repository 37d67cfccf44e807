#![expect(unsafe_code, reason = "several threads write different parts of an output")]

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};

use super::{Parts, team, values};

/// The sum of two tensors of one shape, by the team: candle's own threads would spin on its cores for a while.
pub(crate) struct Add;

/// Below this many values, another thread costs more than it saves.
const VALUES_PER_TASK: usize = 16 * 1024;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (values::<f32>(a, a_layout)?, values::<f32>(b, b_layout)?);
        if a_layout.shape() != b_layout.shape() {
            candle_core::bail!("{:?} and {:?} to add", a_layout.shape(), b_layout.shape());
        }
        let mut out = vec![0_f32; a.len()];
        let to = Parts::new(&mut out);
        team::for_each(a.len().div_ceil(VALUES_PER_TASK), |index| {
            let part = index * VALUES_PER_TASK..a.len().min((index + 1) * VALUES_PER_TASK);
            // SAFETY: these values are one index's.
            let out = unsafe { std::slice::from_raw_parts_mut(to.at(part.start), part.len()) };
            for (out, (a, b)) in out.iter_mut().zip(a[part.clone()].iter().zip(&b[part])) {
                *out = a + b;
            }
        });
        Ok((CpuStorage::F32(out), a_layout.shape().clone()))
    }
}

/// Adds to rows of the first tensor, in the order of `rows`, `weights` times the rows of the second. Whoever calls made
/// sure that there are as many of each, and that rows exist.
pub(crate) struct AddRows<'a> {
    pub(crate) rows: &'a [u32],
    pub(crate) weights: &'a [f32],
}

impl CustomOp2 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "add-rows"
    }

    fn cpu_fwd(
        &self,
        sum: &CpuStorage,
        sum_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        /// Columns of one task: each goes through all rows, so that sums are made in their order.
        const COLUMNS: usize = 256;
        let (_, columns) = sum_layout.shape().dims2()?;
        let (mut out, x) = (values::<f32>(sum, sum_layout)?.to_vec(), values::<f32>(x, x_layout)?);
        let to = Parts::new(&mut out);
        team::for_each(columns.div_ceil(COLUMNS), |index| {
            let part = index * COLUMNS..columns.min((index + 1) * COLUMNS);
            for ((row, weight), x) in self.rows.iter().zip(self.weights).zip(x.chunks_exact(columns)) {
                // SAFETY: these columns are one index's, and the row exists.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(to.at(*row as usize * columns + part.start), part.len()) };
                for (out, x) in out.iter_mut().zip(&x[part.clone()]) {
                    *out += x * weight;
                }
            }
        });
        Ok((CpuStorage::F32(out), sum_layout.shape().clone()))
    }
}
