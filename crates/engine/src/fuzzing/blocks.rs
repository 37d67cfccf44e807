use candle_core::{DType, Device, Tensor};
use chat::Bytes;

use super::file::{self, Header};
use crate::gguf::{TensorType, Weights};

/// The most rows: enough for every way that a product is cut into tasks.
const MOST_ROWS: usize = 40;

/// A byte for the type of the weights, one for the length of a row in pairs of blocks, then rows.
///
/// Unpacks the rows in each way there is, and multiplies with them.
pub fn blocks(data: &[u8]) {
    let [type_id, len, weights @ ..] = data else { return };
    let Some(tensor_type) = TensorType::from_id(u32::from(*type_id)).filter(|found| found.packing().is_some()) else {
        return;
    };
    // An even number, which candle's debug assertions want of some types; its products take any.
    let row_blocks = u64::from(*len % 3 + 1) * 2;
    let rows = (weights.len() / (row_blocks * tensor_type.block_bytes()) as usize).min(MOST_ROWS);
    let columns = (row_blocks * tensor_type.block_len()) as usize;
    if rows == 0 {
        return;
    }
    let mut header = Header::default();
    header.matrix("w", rows as u64, columns as u64, u32::from(*type_id));
    let gguf = file::open(&[&header.file(weights)]).expect("the header is a sound one");
    let progress = &mut |_: Bytes, _: Bytes| {};
    let mut from = Weights::new(&gguf, &Device::Cpu, progress);
    let mut run = || -> candle_core::Result<()> {
        let error = |error: crate::LoadError| candle_core::Error::wrap(error);
        let ids = Tensor::arange(0, rows as u32, &Device::Cpu)?;
        let unpacked = from.unpacked("w", &[rows, columns]).map_err(error)?;
        let looked_up = from.table("w", rows, columns).map_err(error)?.embedding(&ids)?;
        let bits = |tensor: &Tensor| -> candle_core::Result<Vec<u32>> {
            Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
        };
        assert_eq!(bits(&unpacked)?, bits(&looked_up)?, "{}", tensor_type.name());
        let matrix = from.matrix("w", rows, columns).map_err(error)?;
        for tokens in [1, 3] {
            let x = Tensor::ones((tokens, columns), DType::F32, &Device::Cpu)?;
            assert_eq!(matrix.product(&x)?.dims(), [tokens, rows]);
        }
        Ok(())
    };
    run().expect("any bytes are weights");
}
