//! What products need of a processor: vectors of sixteen rows. One instruction set is one implementation.

/// Rows that are computed side by side.
pub(crate) const ROWS: usize = 16;

/// An instruction set. Its functions may only be reached where the processor has it, which [`super::isa`] makes sure of.
pub(crate) trait Simd {
    /// Four codes of each row: 64 bytes.
    type Codes: Copy;
    /// A whole number for each row.
    type Ints: Copy;
    /// An f32 for each row.
    type Floats: Copy;

    fn load(codes: &[u8; 64]) -> Self::Codes;
    /// The lower half of each byte.
    fn low(codes: Self::Codes) -> Self::Codes;
    /// The upper half of each byte.
    fn high(codes: Self::Codes) -> Self::Codes;
    /// `codes | ((bits << LEFT) >> RIGHT & mask)`. What is shifted past a byte's end is not in `mask`.
    fn merge<const LEFT: u32, const RIGHT: u32>(codes: Self::Codes, bits: Self::Codes, mask: u8) -> Self::Codes;
    /// The entry of `table` at each code, which is below 16.
    fn look_up(table: &[u8; 16], codes: Self::Codes) -> Self::Codes;

    fn ints(value: i32) -> Self::Ints;
    /// Adds the products of each row's four codes with the four signed bytes of `x`.
    fn dot(sum: Self::Ints, codes: Self::Codes, x: i32) -> Self::Ints;

    fn floats(value: f32) -> Self::Floats;
    fn to_floats(ints: Self::Ints) -> Self::Floats;
    fn from_f16(bits: &[u8; 32]) -> Self::Floats;
    fn from_bf16(bits: &[u8; 32]) -> Self::Floats;
    fn from_u8(bytes: &[u8; 16]) -> Self::Floats;
    fn from_i8(bytes: &[u8; 16]) -> Self::Floats;
    fn from_array(values: &[f32; 16]) -> Self::Floats;
    fn to_array(values: Self::Floats) -> [f32; 16];
    fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, rounded once.
    fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// All rows' together: row `i` and `8 + i` are added first, then `i` and `4 + i`, and so on.
    fn sum(values: Self::Floats) -> f32;

    /// Number `i` of vector `j` becomes number `j` of vector `i`.
    fn transpose(vectors: [Self::Floats; ROWS]) -> [Self::Floats; ROWS];

    /// Says that the cache line at `address`, which need not exist, is read soon.
    fn prefetch(address: *const u8);
}
