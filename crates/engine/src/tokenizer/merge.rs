use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::models::TokenId;

/// A part of a text: at first one character or byte, later what merges made of several.
#[derive(Clone, Copy)]
pub(super) struct Symbol {
    pub(super) start: usize,
    /// Zero once it was merged into the one to its left.
    pub(super) len: usize,
    pub(super) token: Option<TokenId>,
}

/// What two neighbours become, and how early: the smallest rank goes first, of equal ones the leftmost.
pub(super) struct Merge<R> {
    pub(super) rank: R,
    pub(super) token: TokenId,
}

/// Merges neighbouring `symbols` for as long as `pair` knows a merge, best first. O(n log n).
pub(super) fn merge_all<R: Ord>(symbols: &mut [Symbol], pair: impl Fn(&Symbol, &Symbol) -> Option<Merge<R>>) {
    const NONE: usize = usize::MAX;
    let mut previous: Vec<usize> = (0..symbols.len()).map(|i| i.checked_sub(1).unwrap_or(NONE)).collect();
    let mut next: Vec<usize> = (1..=symbols.len()).collect();
    let mut queue = BinaryHeap::new();
    // The key holds everything that orders; the positions make it unique.
    let propose = |symbols: &[Symbol], left: usize, right: usize, queue: &mut BinaryHeap<_>| {
        let (a, b) = (&symbols[left], &symbols[right]);
        if let Some(Merge { rank, token }) = pair(a, b) {
            queue.push(Reverse((rank, left, right, a.len + b.len, token)));
        }
    };
    for right in 1..symbols.len() {
        propose(symbols, right - 1, right, &mut queue);
    }
    while let Some(Reverse((_, left, right, len, token))) = queue.pop() {
        let (a, b) = (symbols[left], symbols[right]);
        // One of the two was merged with another one since this was proposed.
        if a.len == 0 || b.len == 0 || a.len + b.len != len {
            continue;
        }
        symbols[left] = Symbol { start: a.start, len, token: Some(token) };
        symbols[right].len = 0;
        next[left] = next[right];
        if next[left] < symbols.len() {
            previous[next[left]] = left;
            propose(symbols, left, next[left], &mut queue);
        }
        if previous[left] != NONE {
            propose(symbols, previous[left], left, &mut queue);
        }
    }
}
