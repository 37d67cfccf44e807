//! Tokens as instructions for matrices take them: sixteen at once.

use std::mem::MaybeUninit;

use super::activations::Group;
use super::{Parts, team};

/// Tokens of a panel.
pub(crate) const PANEL: usize = 16;
/// Panels that are computed with the same unpacked weights.
pub(crate) const PANELS: usize = 4;
/// Tokens of one task.
pub(crate) const TOKENS: usize = PANELS * PANEL;
/// Tiles of one task, which reads its tokens once from afar for all of them.
pub(crate) const TILES: usize = 4;

/// A [`Group`] of each token of a panel.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    pub(crate) codes: [[i32; 8]; PANEL],
    pub(crate) scales: [f32; PANEL],
    pub(crate) sums: [f32; PANEL],
}

/// The panels of `tokens`, one after the other, each with one [`Panel`] for each group; what the last one lacks is zeros.
pub(crate) fn panels(x: &[Group], tokens: usize) -> Vec<Panel> {
    let groups = x.len() / tokens;
    let count = tokens.div_ceil(PANEL);
    let mut panels = Vec::with_capacity(count * groups);
    let to = Parts::new(panels.spare_capacity_mut());
    team::for_each(count, |index| {
        for group in 0..groups {
            let mut panel = Panel { codes: [[0; 8]; PANEL], scales: [0.0; PANEL], sums: [0.0; PANEL] };
            for (token, x) in x[index * PANEL * groups..].chunks_exact(groups).take(PANEL).enumerate() {
                (panel.codes[token], panel.scales[token], panel.sums[token]) =
                    (x[group].codes, x[group].scale, x[group].sum);
            }
            #[expect(unsafe_code, reason = "several threads write different parts of a vector")]
            // SAFETY: there is room for so many, and each is one index's.
            unsafe {
                to.at(index * groups + group).write(MaybeUninit::new(panel));
            }
        }
    });
    #[expect(unsafe_code, reason = "panels are not filled with zeros first")]
    // SAFETY: there is room for so many, and each was written.
    unsafe {
        panels.set_len(count * groups);
    }
    panels
}
