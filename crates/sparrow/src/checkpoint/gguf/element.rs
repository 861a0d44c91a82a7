//! The types of stored tensors, by their numbers in the file.

use sparrow_kernels::DType;

/// The type of that number.
///
/// # Errors
/// What it is called, if it cannot be read.
pub(super) fn of(number: u32) -> Result<DType, String> {
    let Some((_, name)) = NAMES.iter().find(|(n, _)| *n == number) else { return Err(format!("number {number}")) };
    let known = DType::FLOATS.into_iter().chain(DType::ALL.into_iter().filter(|dtype| dtype.block().is_some()));
    known.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name)).ok_or_else(|| (*name).to_owned())
}

/// What the file calls it.
pub(in crate::checkpoint) fn name(dtype: DType) -> &'static str {
    NAMES.iter().map(|(_, name)| *name).find(|name| dtype.name().eq_ignore_ascii_case(name)).unwrap_or(dtype.name())
}

/// What can be read, for messages.
pub(super) fn readable() -> String {
    NAMES.iter().filter(|(n, _)| of(*n).is_ok()).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

/// Numbers that are only stored together.
pub(super) fn elements(dtype: DType) -> usize {
    dtype.block().map_or(1, |format| format.elements)
}

/// Every type that files have had, also those that cannot be read, so that errors can name them.
const NAMES: [(u32, &str); 37] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (4, "Q4_2"),
    (5, "Q4_3"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (31, "Q4_0_4_4"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];
