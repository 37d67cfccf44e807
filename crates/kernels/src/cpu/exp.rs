/// `eˣ` of sixteen values that aren't above zero, within 2⁻²¹ of it; below -87 zero. Plain arithmetic without a branch,
/// which compilers turn into vectors, unlike a call for each.
#[inline(always)]
pub(crate) fn exp(mut all: [f32; 16]) -> [f32; 16] {
    /// Added to a number of less than 23 bits, leaves its nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, of which products of the first with small whole numbers are exact (Cody and Waite).
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    for value in &mut all {
        let x = *value;
        let clamped = if x < -87.0 { -87.0 } else { x };
        let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
        let n = rounded - ROUND;
        let r = clamped - n * LN_2[0] - n * LN_2[1];
        // Taylor's series: r is at most ln 2 / 2.
        let tail = 0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))));
        let power = 1.0 + r + r * r * tail;
        // 2ⁿ, whose exponent is n's lowest bits and 127.
        let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
        *value = if x < -87.0 { 0.0 } else { power * scale };
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_e_to_the_x() {
        for step in 0..1_000 {
            let x: [f32; 16] = std::array::from_fn(|i| -((step * 16 + i) as f32) * 0.0054);
            for (x, found) in x.into_iter().zip(exp(x)) {
                let exact = f64::from(x).exp();
                assert!((f64::from(found) - exact).abs() <= exact * 2_f64.powi(-21), "{x}: {found} is not {exact}");
            }
        }
        assert_eq!(exp([f32::NEG_INFINITY; 16]), [0.0; 16]);
    }
}
