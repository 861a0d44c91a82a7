//! The element types.

/// How the numbers of a stored tensor are written, little-endian.
///
/// The names of the float types are those of the safetensors format in lower case. In a quantised type a row is
/// complete in itself: its elements and what scales them, so rows can be gathered one by one. See `dtype/layout.rs` for
/// the layout; types from [`Q4_0`](Self::Q4_0) on are GGML's, in blocks, see [`BlockFormat`](crate::BlockFormat).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(non_camel_case_types)] // The names that everybody knows.
pub enum DType {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
    F16 = 1,
    /// bfloat16: the upper half of a binary32.
    BF16 = 2,
    /// 8-bit integers and one `f32` scale per row.
    I8 = 3,
    /// 4-bit integers less 8, an `f16` scale per group of 32.
    I4G32 = 4,
    /// 4-bit integers less a zero point, an `f16` scale and a zero point per group of 32.
    I4G32Z = 5,
    /// As [`I4G32`](Self::I4G32) in groups of 128.
    I4G128 = 6,
    /// As [`I4G32Z`](Self::I4G32Z) in groups of 128.
    I4G128Z = 7,
    /// 4 bits less 8, a scale per 32.
    Q4_0 = 8,
    /// 4 bits, a scale and a smallest value per 32.
    Q4_1 = 9,
    /// 5 bits less 16, a scale per 32.
    Q5_0 = 10,
    /// 5 bits, a scale and a smallest value per 32.
    Q5_1 = 11,
    /// 8 bits, a scale per 32.
    Q8_0 = 12,
    /// 2 bits, a scale and a smallest value per 16, which 256 share the scales of.
    Q2_K = 13,
    /// 3 bits, a scale per 16.
    Q3_K = 14,
    /// 4 bits, a scale and a smallest value per 32.
    Q4_K = 15,
    /// 5 bits, a scale and a smallest value per 32.
    Q5_K = 16,
    /// 6 bits, a scale per 16.
    Q6_K = 17,
    /// 4 bits that stand for unevenly spaced values, a scale per 32.
    IQ4_NL = 18,
    /// As [`IQ4_NL`](Self::IQ4_NL), 256 sharing the scale of their scales.
    IQ4_XS = 19,
}

/// [`DType::F32`] as a constant generic argument of a kernel.
pub(crate) const F32: u8 = DType::F32 as u8;
/// [`DType::F16`] as a constant generic argument of a kernel.
pub(crate) const F16: u8 = DType::F16 as u8;
/// [`DType::BF16`] as a constant generic argument of a kernel.
pub(crate) const BF16: u8 = DType::BF16 as u8;
/// [`DType::I8`] as a constant generic argument of a kernel.
pub(crate) const I8: u8 = DType::I8 as u8;
/// [`DType::I4G32`] as a constant generic argument of a kernel.
pub(crate) const I4G32: u8 = DType::I4G32 as u8;
/// [`DType::I4G32Z`] as a constant generic argument of a kernel.
pub(crate) const I4G32Z: u8 = DType::I4G32Z as u8;
/// [`DType::I4G128`] as a constant generic argument of a kernel.
pub(crate) const I4G128: u8 = DType::I4G128 as u8;
/// [`DType::I4G128Z`] as a constant generic argument of a kernel.
pub(crate) const I4G128Z: u8 = DType::I4G128Z as u8;

/// The number of types: tables of kernels have one entry for each.
pub(crate) const TYPES: usize = DType::ALL.len();
/// The number of types that a cache may have, [`DType::CACHES`]: the first ones.
pub(crate) const CACHES: usize = DType::CACHES.len();

/// Bytes from one element to the next, of the type whose discriminant is `code`.
pub(crate) const fn code_size(code: u8) -> usize {
    match code {
        F32 => 4,
        F16 | BF16 => 2,
        I8 => 1,
        _ => panic!("elements share bytes"),
    }
}

impl DType {
    /// Every type, in the order of the discriminants.
    pub const ALL: [DType; 20] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::I4G32,
        DType::I4G32Z,
        DType::I4G128,
        DType::I4G128Z,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ4_NL,
        DType::IQ4_XS,
    ];

    /// The types whose elements stand alone.
    pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    /// The types that keys and values are cached in.
    pub const CACHES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::I8];

    /// Whether elements share scales, so that only whole rows can be read or written.
    pub const fn is_quantized(self) -> bool {
        self as u8 >= I8
    }
}
