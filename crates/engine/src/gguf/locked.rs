use std::io;
use std::sync::Arc;

use super::content::Content;
use super::mapped::MappedBytes;
use crate::wiring::Pieces;

/// Bytes that are locked at once: few enough that the system can be told to stop soon, many enough that a disk reads them in
/// one go.
const PIECE: usize = 4 << 20;

/// The largest page of the systems that this runs on: Apple silicon's.
const PAGE: usize = 16 << 10;

/// Mapped weights, to be locked in RAM piece by piece.
pub(crate) struct LockedPieces(Vec<MappedBytes>);

impl LockedPieces {
    /// `weights` in the order of their files, in pieces of whole pages, none of which is in two.
    pub(crate) fn new(weights: &[MappedBytes]) -> Self {
        // What was computed lies in pages of its own that the system may not read again; it is small.
        let mapped = weights.iter().filter(|bytes| matches!(**bytes.content(), Content::Mapped(_)));
        let mut spans: Vec<_> = mapped.map(|bytes| (bytes.content(), bytes.whole_pages(PAGE))).collect();
        spans.sort_by_key(|(map, pages)| (Arc::as_ptr(map), pages.start));
        let mut merged: Vec<(&Arc<Content>, std::ops::Range<usize>)> = Vec::new();
        for (map, pages) in spans {
            match merged.last_mut() {
                Some((last_map, last)) if Arc::ptr_eq(last_map, map) && pages.start <= last.end => {
                    last.end = last.end.max(pages.end);
                }
                _ => merged.push((map, pages)),
            }
        }
        Self(merged.into_iter().flat_map(|(map, pages)| MappedBytes::new(map, pages).cut(PIECE)).collect())
    }
}

impl Pieces for LockedPieces {
    fn sizes(&self) -> Vec<u64> {
        self.0.iter().map(|piece| piece.len() as u64).collect()
    }

    fn hold(&mut self, piece: usize) -> io::Result<()> {
        self.0[piece].lock()
    }

    fn release(&mut self, piece: usize) {
        self.0[piece].unlock();
    }
}
