//! Tokens as instructions for matrices take them: sixteen at once.

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
    const EMPTY: Panel = Panel { codes: [[0; 8]; PANEL], scales: [0.0; PANEL], sums: [0.0; PANEL] };
    let groups = x.len() / tokens;
    let mut panels = vec![EMPTY; tokens.div_ceil(PANEL) * groups];
    let to = Parts::new(&mut panels);
    team::for_each(tokens.div_ceil(PANEL), |index| {
        #[expect(unsafe_code, reason = "several threads write different parts of a slice")]
        // SAFETY: there are so many panels, and each is one index's.
        let panels = unsafe { std::slice::from_raw_parts_mut(to.at(index * groups), groups) };
        for (token, x) in x[index * PANEL * groups..].chunks_exact(groups).take(PANEL).enumerate() {
            for (panel, group) in panels.iter_mut().zip(x) {
                (panel.codes[token], panel.scales[token], panel.sums[token]) = (group.codes, group.scale, group.sum);
            }
        }
    });
    panels
}
