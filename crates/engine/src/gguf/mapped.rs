//! Weights that stay in the mapped file: the system reads them when they are needed and takes the memory back when it is
//! short.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

use candle_core::CpuStorage;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, matmul,
    matmul_f16,
};
use candle_core::quantized::{GgmlDType, GgmlType, QStorage, QuantizedType};
use half::{bf16, f16};
use kernels::cpu::{TILE_ROWS, tile, tiled_bytes};
use kernels::packed::Packing;
use memmap2::{Advice, MmapMut, UncheckedAdvice};

use super::content::Content;
use crate::LoadError;

/// Bytes of a part of a model, which stays mapped as long as they are used.
#[derive(Clone)]
pub(crate) struct MappedBytes {
    map: Arc<Content>,
    range: Range<usize>,
}

impl MappedBytes {
    /// # Panics
    /// When the file doesn't have the range; that of a tensor in a [`Header`](super::parse::Header) it has.
    pub(super) fn new(map: &Arc<Content>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= map.len());
        Self { map: map.clone(), range }
    }

    /// Bytes that lie in memory only.
    pub(super) fn made(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { map: Arc::new(Content::Made(bytes)), range }
    }

    /// The part `index` of `count` of equal length.
    pub(super) fn part(&self, index: usize, count: usize) -> Self {
        let len = self.len() / count;
        let start = self.range.start + index * len;
        Self::new(&self.map, start..start + len)
    }

    /// What they are a part of.
    pub(super) const fn content(&self) -> &Arc<Content> {
        &self.map
    }

    /// Where in the file the pages are that these bytes lie on.
    pub(super) fn whole_pages(&self, page: usize) -> Range<usize> {
        self.range.start / page * page..self.range.end.next_multiple_of(page).min(self.map.len())
    }

    /// Parts of at most `len` bytes.
    pub(super) fn cut(self, len: usize) -> impl Iterator<Item = Self> {
        let Self { map, range: Range { start, end } } = self;
        (start..end).step_by(len).map(move |at| Self::new(&map, at..end.min(at + len)))
    }

    /// Has the system read them from the disk, and `more` bytes after them, all at once and beside whatever else is done. It
    /// may decline.
    pub(super) fn read_ahead(&self, more: usize) {
        if let Content::Mapped(map) = &*self.map {
            let len = self.range.len().saturating_add(more).min(map.len() - self.range.start);
            // Advice only: without it they are read page by page.
            let _ = map.advise_range(Advice::WillNeed, self.range.start, len);
        }
    }

    /// Brings the pages with these bytes into RAM and keeps them there.
    pub(super) fn lock(&self) -> io::Result<()> {
        self.read_ahead(0);
        #[expect(unsafe_code, reason = "the system's only way to keep pages, for a part of a map")]
        // SAFETY: the bytes are mapped as long as `self` lives, and locking doesn't change them.
        let failed = unsafe { libc::mlock(self.as_ptr().cast(), self.len()) } != 0;
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Lets the system take the pages back now; the file still has what is on them.
    fn release(&self) {
        if let Content::Mapped(map) = &*self.map {
            #[expect(unsafe_code, reason = "advice that would lose what was written to memory of our own")]
            // SAFETY: the map is one of a file, since no other is ever released, and nothing is written to it.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.range.start, self.len()) };
        }
    }

    /// Undoes [`Self::lock`].
    pub(super) fn unlock(&self) {
        #[expect(unsafe_code, reason = "the system's only way to let pages go, for a part of a map")]
        // SAFETY: the bytes are mapped as long as `self` lives, and unlocking doesn't change them.
        unsafe {
            // Fails only for addresses that aren't mapped.
            libc::munlock(self.as_ptr().cast(), self.len());
        }
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl AsRef<[u8]> for MappedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The blocks as candle computes with them: where they are, if they lie as it needs, else copied.
pub(super) fn mapped(bytes: MappedBytes, dtype: GgmlDType) -> QStorage {
    match dtype {
        GgmlDType::F32 => mapped_blocks::<f32>(bytes, dtype),
        GgmlDType::Q4_0 => mapped_blocks::<BlockQ4_0>(bytes, dtype),
        GgmlDType::Q4_1 => mapped_blocks::<BlockQ4_1>(bytes, dtype),
        GgmlDType::Q5_0 => mapped_blocks::<BlockQ5_0>(bytes, dtype),
        GgmlDType::Q5_1 => mapped_blocks::<BlockQ5_1>(bytes, dtype),
        GgmlDType::Q8_0 => mapped_blocks::<BlockQ8_0>(bytes, dtype),
        GgmlDType::Q2K => mapped_blocks::<BlockQ2K>(bytes, dtype),
        GgmlDType::Q3K => mapped_blocks::<BlockQ3K>(bytes, dtype),
        GgmlDType::Q4K => mapped_blocks::<BlockQ4K>(bytes, dtype),
        GgmlDType::Q5K => mapped_blocks::<BlockQ5K>(bytes, dtype),
        GgmlDType::Q6K => mapped_blocks::<BlockQ6K>(bytes, dtype),
        GgmlDType::F16 => mapped_blocks::<f16>(bytes, dtype),
        GgmlDType::BF16 => mapped_blocks::<bf16>(bytes, dtype),
        // Types of activations, which no file has.
        GgmlDType::Q8_1 | GgmlDType::Q8K => copied(&bytes, dtype),
    }
}

/// The blocks in tiles, page by page in place of the file's; `None` where there are none for the packing. Tells how many
/// bytes were taken, as it goes.
///
/// # Errors
/// When there is no memory for them.
pub(super) fn tiled(
    blocks: MappedBytes,
    packing: Packing,
    rows: usize,
    columns: usize,
    mut on_bytes: impl FnMut(usize),
) -> Result<Option<MappedBytes>, LoadError> {
    /// Repacked at once, so that little is in memory twice.
    const BYTES: usize = 4 << 20;
    let Some(len) = tiled_bytes(packing, rows, columns) else { return Ok(None) };
    let no_memory = |error: io::Error| LoadError::Device(candle_core::Error::wrap(error));
    let mut tiles = MmapMut::map_anon(len as usize).map_err(no_memory)?;
    // Each product walks through all of it: large pages take fewer steps. Advice, which the system may not follow.
    #[cfg(target_env = "gnu")]
    let _ = tiles.advise(Advice::HugePage);
    let tile_bytes = len as usize / rows.div_ceil(TILE_ROWS);
    let at_once = (BYTES / tile_bytes).max(1) * tile_bytes;
    for (blocks, tiles) in blocks.cut(at_once).zip(tiles.chunks_mut(at_once)) {
        tile(&blocks, packing, columns, tiles).map_err(LoadError::Device)?;
        blocks.release();
        on_bytes(blocks.len());
    }
    let map = tiles.make_read_only().map_err(no_memory)?;
    Ok(Some(MappedBytes::new(&Arc::new(Content::Mapped(map)), 0..len as usize)))
}

/// The blocks in memory of their own.
pub(super) fn copied(bytes: &[u8], dtype: GgmlDType) -> QStorage {
    // candle reinterprets the bytes and wants them aligned, which a fresh allocation of words is whatever the file's
    // alignment.
    let mut aligned = vec![0_u64; bytes.len().div_ceil(8)];
    for (word, chunk) in aligned.iter_mut().zip(bytes.chunks(8)) {
        let mut value = [0; 8];
        value[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(value);
    }
    #[expect(unsafe_code, reason = "words are read as bytes")]
    // SAFETY: the words are initialised, and at least as many bytes as `bytes` has.
    let aligned = unsafe { std::slice::from_raw_parts(aligned.as_ptr().cast::<u8>(), bytes.len()) };
    QStorage::Cpu(dtype.from_data(aligned.into()))
}

fn mapped_blocks<T: GgmlType + 'static>(bytes: MappedBytes, dtype: GgmlDType) -> QStorage {
    if !bytes.as_ptr().cast::<T>().is_aligned() || !bytes.len().is_multiple_of(size_of::<T>()) {
        return copied(&bytes, dtype);
    }
    QStorage::Cpu(Box::new(MappedBlocks::<T> { bytes, blocks: PhantomData }))
}

/// Packed weights in the mapped file, which candle computes with as if they were its own.
struct MappedBlocks<T> {
    bytes: MappedBytes,
    blocks: PhantomData<T>,
}

impl<T: GgmlType> MappedBlocks<T> {
    fn blocks(&self) -> &[T] {
        let bytes: &[u8] = &self.bytes;
        #[expect(unsafe_code, reason = "mapped bytes are read as candle's blocks")]
        // SAFETY: `mapped_blocks` made sure of the alignment and of a whole number of blocks, the map lives as long as
        // `self`, and every type it is called with consists of integers and floats, which any bytes are valid for.
        unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast::<T>(), bytes.len() / size_of::<T>())
        }
    }
}

impl<T: GgmlType> QuantizedType for MappedBlocks<T> {
    fn dtype(&self) -> GgmlDType {
        T::DTYPE
    }

    fn matmul_t(&self, mkn: (usize, usize, usize), lhs: &[f32], dst: &mut [f32]) -> candle_core::Result<()> {
        matmul(mkn, lhs, self.blocks(), dst)
    }

    fn matmul_t_f16(&self, mkn: (usize, usize, usize), lhs: &[f16], dst: &mut [f16]) -> candle_core::Result<()> {
        matmul_f16(mkn, lhs, self.blocks(), dst)
    }

    fn embedding(&self, ids: &[u32], rows: usize, hidden: usize) -> candle_core::Result<CpuStorage> {
        let row_blocks = hidden / T::BLCK_SIZE;
        let mut out = vec![0_f32; ids.len() * hidden];
        for (out_row, id) in out.chunks_exact_mut(hidden).zip(ids) {
            let row = *id as usize;
            let start = row * row_blocks;
            let Some(blocks) = self.blocks().get(start..start + row_blocks).filter(|_| row < rows) else {
                candle_core::bail!("token {row} is not one of {rows}");
            };
            T::to_float(blocks, out_row);
        }
        Ok(CpuStorage::F32(out))
    }

    fn dequantize(&self, elem_count: usize) -> candle_core::Result<CpuStorage> {
        let mut values = vec![0_f32; elem_count];
        T::to_float(self.blocks(), &mut values);
        Ok(CpuStorage::F32(values))
    }

    fn storage_size_in_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    fn block_size(&self) -> usize {
        T::BLCK_SIZE
    }

    fn from_float(&mut self, _: &[f32]) {
        unreachable!("mapped weights are never written")
    }

    fn from_float_imatrix(&mut self, _: &[f32], _: &[f32], _: usize) {
        unreachable!("mapped weights are never written")
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }
}
