//! The types of stored tensors, by their numbers in the file.

use sparrow_kernels::{BlockFormat, DType};

/// How the numbers of a tensor are written.
#[derive(Debug, Clone, Copy)]
pub enum Element {
    /// Each by itself.
    Float(DType),
    /// In blocks.
    Block(&'static BlockFormat),
}

impl Element {
    /// The type of that number.
    ///
    /// # Errors
    /// What it is called, if it cannot be read.
    pub fn of(number: u32) -> Result<Self, String> {
        let name = NAMES.iter().find(|(n, _)| *n == number).map(|(_, name)| *name);
        match name {
            Some("F32") => Ok(Element::Float(DType::F32)),
            Some("F16") => Ok(Element::Float(DType::F16)),
            Some("BF16") => Ok(Element::Float(DType::BF16)),
            Some(name) => BlockFormat::named(name).map(Element::Block).ok_or_else(|| name.to_owned()),
            None => Err(format!("number {number}")),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Element::Float(DType::F32) => "F32",
            Element::Float(DType::F16) => "F16",
            Element::Float(_) => "BF16",
            Element::Block(format) => format.name,
        }
    }

    /// Numbers that are only stored together.
    pub fn elements(&self) -> usize {
        match self {
            Element::Float(_) => 1,
            Element::Block(format) => format.elements,
        }
    }

    /// Bytes of those.
    pub fn bytes(&self) -> usize {
        match self {
            Element::Float(dtype) => dtype.row_bytes(1),
            Element::Block(format) => format.bytes,
        }
    }

    /// What can be read, for messages.
    pub fn readable() -> String {
        NAMES.iter().filter(|(n, _)| Element::of(*n).is_ok()).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    }

    /// The numbers of whole rows.
    pub fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Element::Float(dtype) => sparrow_kernels::decode(*dtype, bytes, out),
            Element::Block(format) => format.decode(bytes, out),
        }
    }
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
