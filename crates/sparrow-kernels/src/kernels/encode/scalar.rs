//! Rows narrowed in portable Rust.

use crate::dtype::{DType, encode};

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// None: unsafe only to fit the table.
        pub(crate) unsafe fn $name(values: &[f32], out: &mut [u8]) {
            encode($dtype, values, out);
        }
    )*};
}

kernels! {
    encode_f32_scalar: DType::F32;
    encode_f16_scalar: DType::F16;
    encode_bf16_scalar: DType::BF16;
    encode_i8_scalar: DType::I8;
}
