use half::{bf16, f16};

use crate::gguf::TensorType;

/// What the converter to GGUF does to the values of a tensor, done when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Change {
    /// Gemma's norms are published as their difference from one. Becomes f32.
    PlusOne,
    /// The matrices of experts are published as `(columns, rows)`; in gpt-oss with the rows of gate and up in turn.
    Transposed { rows: Order },
    /// Vectors whose values stand so.
    Reordered(Order),
}

/// How the rows of gate and up stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// All of gate, then all of up.
    InHalves,
    /// One of each in turn.
    InTurn,
}

impl Order {
    /// Where row `row` of `rows` is found.
    const fn source(self, row: usize, rows: usize) -> usize {
        match self {
            Self::InHalves => row,
            Self::InTurn if row < rows / 2 => 2 * row,
            Self::InTurn => 2 * (row - rows / 2) + 1,
        }
    }
}

impl Change {
    /// The tensor of `shape` out of what is stored, which has the type `stored_as`: its bytes and their type.
    pub(crate) fn apply(self, stored: &[u8], stored_as: TensorType, shape: &[usize]) -> (Vec<u8>, TensorType) {
        let value = stored_as.block_bytes() as usize;
        match (self, shape) {
            (Self::PlusOne, _) => {
                let values = match stored_as {
                    TensorType::F32 => plus_one(stored, f32::from_le_bytes),
                    TensorType::F16 => plus_one(stored, |bytes| f16::from_le_bytes(bytes).to_f32()),
                    _ => plus_one(stored, |bytes| bf16::from_le_bytes(bytes).to_f32()),
                };
                (values, TensorType::F32)
            }
            (Self::Transposed { rows }, [.., height, width]) => {
                let source = |row, column| column * height + rows.source(row, *height);
                (rearranged(stored, value, (*height, *width), source), stored_as)
            }
            (Self::Reordered(order), [.., len]) => {
                (rearranged(stored, value, (1, *len), |_, column| order.source(column, *len)), stored_as)
            }
            // A tensor of fewer dimensions, which the graph has no use for.
            (Self::Transposed { .. } | Self::Reordered(_), _) => (stored.to_vec(), stored_as),
        }
    }
}

fn plus_one<const N: usize>(stored: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<u8> {
    stored.as_chunks().0.iter().flat_map(|bytes| (read(*bytes) + 1.0).to_le_bytes()).collect()
}

/// Each matrix of `height` × `width` values of `value` bytes, with its values taken from elsewhere in it.
fn rearranged(
    stored: &[u8],
    value: usize,
    (height, width): (usize, usize),
    source: impl Fn(usize, usize) -> usize,
) -> Vec<u8> {
    let mut made = Vec::with_capacity(stored.len());
    for matrix in stored.chunks_exact((height * width * value).max(1)) {
        for row in 0..height {
            for column in 0..width {
                let at = source(row, column) * value;
                made.extend_from_slice(&matrix[at..at + value]);
            }
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_get_their_one_back() {
        let plus_one = |stored: &[u8], stored_as| {
            let (bytes, tensor_type) = Change::PlusOne.apply(stored, stored_as, &[1]);
            assert_eq!(tensor_type, TensorType::F32);
            f32::from_le_bytes(bytes.try_into().unwrap())
        };
        assert_eq!(plus_one(&bf16::from_f32(-1.0).to_le_bytes(), TensorType::BF16), 0.0);
        assert_eq!(plus_one(&f16::from_f32(0.5).to_le_bytes(), TensorType::F16), 1.5);
        assert_eq!(plus_one(&0.25_f32.to_le_bytes(), TensorType::F32), 1.25);
    }

    #[test]
    fn experts_are_turned_and_their_rows_sorted() {
        let changed = |change: Change, stored: &[u16], shape: &[usize]| -> Vec<u16> {
            let stored: Vec<u8> = stored.iter().flat_map(|value| value.to_le_bytes()).collect();
            let (bytes, _) = change.apply(&stored, TensorType::BF16, shape);
            bytes.as_chunks().0.iter().map(|value| u16::from_le_bytes(*value)).collect()
        };
        // Two experts of two columns by four rows.
        let stored: Vec<u16> = (0..16).collect();
        let turned = changed(Change::Transposed { rows: Order::InHalves }, &stored, &[2, 4, 2]);
        assert_eq!(turned, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
        let sorted = changed(Change::Transposed { rows: Order::InTurn }, &stored, &[2, 4, 2]);
        assert_eq!(sorted, [0, 4, 2, 6, 1, 5, 3, 7, 8, 12, 10, 14, 9, 13, 11, 15]);
        assert_eq!(changed(Change::Reordered(Order::InTurn), &stored[..8], &[2, 4]), [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
