//! What operations check alike.

/// Panics unless every id is below `limit`.
pub(super) fn check_ids(op: &str, name: &str, ids: &[u32], limit: usize) {
    let largest = ids.iter().copied().max();
    assert!(largest.is_none_or(|id| (id as usize) < limit), "{op}: {name} holds {largest:?}, of {limit} rows");
}
