use candle_core::quantized::GgmlDType;

/// Bytes of the second copy that a matrix gets on the CPU, in a layout that SIMD products read; 0 where it gets none.
/// Q5_0 is widened by us at load, the others are repacked by candle at their first use. Mirrors `repack.rs` and `repack_x86.rs` of candle-core 0.11, which keep the
/// rule private.
#[cfg(target_arch = "x86_64")]
pub fn repacked_bytes(dtype: GgmlDType, rows: usize, columns: usize) -> u64 {
    if dtype == GgmlDType::Q5_0 {
        return widened_bytes(rows, columns) + repacked_bytes(GgmlDType::Q8_0, rows, columns);
    }
    const ROWS_PER_TILE: usize = 16;
    const WEIGHTS_PER_TILE_ROW: usize = 256;
    let vnni = (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"))
        || (is_x86_feature_detected!("avxvnni") && is_x86_feature_detected!("avx2"));
    if !is_x86_feature_detected!("avx2")
        || !rows.is_multiple_of(ROWS_PER_TILE)
        || !columns.is_multiple_of(WEIGHTS_PER_TILE_ROW)
    {
        return 0;
    }
    let tiles = (rows / ROWS_PER_TILE * (columns / WEIGHTS_PER_TILE_ROW)) as u64;
    match dtype {
        // 8 scales and 8 minima in f32 for each row, and 4 bits a weight; for prompts on AMX, a byte.
        GgmlDType::Q4K => {
            let amx = if has_amx() { 2 * 8 * 16 * 4 + 256 * 16 } else { 0 };
            tiles * (2 * 8 * 16 * 4 + 256 * 16 / 2 + amx)
        }
        // 16 scales in f32 for each row, and a byte a weight.
        GgmlDType::Q6K => tiles * (16 * 16 * 4 + 256 * 16),
        // 8 blocks of 32, each with a scale in f16 and a byte a weight for each row.
        GgmlDType::Q8_0 if vnni => tiles * 8 * (16 * 2 + 32 * 16),
        _ => 0,
    }
}

/// Whether candle uses Intel's matrix unit. Linux could still refuse it to the process; then this is too much.
#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    const TILES_AND_INT8: u32 = 1 << 24 | 1 << 25;
    is_x86_feature_detected!("avx512vnni")
        && core::arch::x86_64::__cpuid_count(7, 0).edx & TILES_AND_INT8 == TILES_AND_INT8
}

/// Bytes of the second copy that a matrix gets on the CPU, in a layout that SIMD products read; 0 where it gets none.
/// Q5_0 is widened by us at load, the others are repacked by candle at their first use. Mirrors `repack.rs` of candle-core 0.11, which keeps the rule private.
#[cfg(not(target_arch = "x86_64"))]
pub fn repacked_bytes(dtype: GgmlDType, rows: usize, columns: usize) -> u64 {
    if dtype == GgmlDType::Q5_0 {
        return widened_bytes(rows, columns) + repacked_bytes(GgmlDType::Q8_0, rows, columns);
    }
    let interleaved_rows = match dtype {
        GgmlDType::Q4_0 | GgmlDType::Q8_0 => 4,
        GgmlDType::Q4K | GgmlDType::Q5K | GgmlDType::Q6K => 8,
        _ => return 0,
    };
    if !rows.is_multiple_of(interleaved_rows) {
        return 0;
    }
    // The same blocks in another order.
    (rows * columns / dtype.block_size() * dtype.type_size()) as u64
}

/// Whether the product of a matrix with one token reads the blocks themselves, not a second copy of them.
pub fn one_token_reads_blocks(dtype: GgmlDType, rows: usize, columns: usize) -> bool {
    match dtype {
        // Both are copied at load.
        GgmlDType::Q5_0 | GgmlDType::F32 => false,
        // Its second layout on x86 is for several tokens.
        GgmlDType::Q6K if cfg!(target_arch = "x86_64") => true,
        _ => repacked_bytes(dtype, rows, columns) == 0,
    }
}

/// Bytes of a Q5_0 matrix as [`q5_0_as_q8_0`](super::q5_0_as_q8_0) writes it.
const fn widened_bytes(rows: usize, columns: usize) -> u64 {
    (rows * columns / 32 * 34) as u64
}
