//! What identifies a checkpoint without reading all of it.

use sha2::{Digest, Sha256};

use super::Checkpoint;

/// SHA-256 over names, shapes and sampled bytes of a checkpoint's tensors: reading all of a large model would cost
/// every start many seconds.
pub fn fingerprint(checkpoint: &Checkpoint) -> String {
    let mut hash = Sha256::new();
    for (name, shape, bytes) in checkpoint.identity() {
        hash.update(format!("{name} {shape:?}\n"));
        hash.update(bytes);
    }
    hex(&hash.finalize())
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
