//! The operations: safe methods of [`Compute`](crate::Compute), a file each, which states equation, shapes and
//! tolerance.

mod activation;
mod add_rows;
mod attention;
mod check;
mod linear;
mod linear_in_out;
mod norm;
mod pack;
mod probe;
mod products;
mod quantize;
mod quantize_activations;
mod rope;
mod select;
mod sign;
mod softmax;
mod sparse_kv;
mod sparse_mlp;
mod sparse_mlp_integer;
mod store_kv;
mod transpose;
mod unpack;

pub use linear::LinearPart;
pub use pack::{BitmapSizes, PackedBitmap, count_stored, fill_bitmap, pack};
pub use probe::{BandwidthProbe, Peak, peak, read_bandwidth};
pub use quantize::quantize;
pub use select::{count_ones, mask_words, union_masks};
pub use sparse_mlp::{Pooled, SparseMlp, SparseMlpInputs};
pub use sparse_mlp_integer::{Integer, IntegerActivation, IntegerMlp, IntegerOverflow, IntegerStage};
pub use transpose::transpose;
pub use unpack::unpack;
