//! The list of types that tables of kernels are made from.

/// An array with an entry for every type, in the order of the discriminants: what is given for f32, f16, bf16 and int8,
/// then `$coded`, generic over [`Coded`], wrapped in `$wrap` if that is given. This is the list that a new type is added
/// to.
macro_rules! by_type {
    ([$($first:expr),* $(,)?], $($wrap:ident)? <$($coded:ident)::+>) => {{
        use crate::dtype::types::{I4G32, I4G32Z, I4G128, I4G128Z};
        use crate::dtype::block::*;
        use crate::dtype::int4::Int4Rows;
        [
            $($first,)*
            $($wrap)?($($coded)::+::<Int4Rows<I4G32>>),
            $($wrap)?($($coded)::+::<Int4Rows<I4G32Z>>),
            $($wrap)?($($coded)::+::<Int4Rows<I4G128>>),
            $($wrap)?($($coded)::+::<Int4Rows<I4G128Z>>),
            $($wrap)?($($coded)::+::<Q4_0>),
            $($wrap)?($($coded)::+::<Q4_1>),
            $($wrap)?($($coded)::+::<Q5_0>),
            $($wrap)?($($coded)::+::<Q5_1>),
            $($wrap)?($($coded)::+::<Q8_0>),
            $($wrap)?($($coded)::+::<Q2_K>),
            $($wrap)?($($coded)::+::<Q3_K>),
            $($wrap)?($($coded)::+::<Q4_K>),
            $($wrap)?($($coded)::+::<Q5_K>),
            $($wrap)?($($coded)::+::<Q6_K>),
            $($wrap)?($($coded)::+::<IQ4_NL>),
            $($wrap)?($($coded)::+::<IQ4_XS>),
        ]
    }};
}
pub(crate) use by_type;
