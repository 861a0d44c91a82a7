//! Cached rows of one head as pieces, each stored in one way.

use super::block::PackedRun;
use super::dense::DenseKv;
use super::view::{KvRows, KvView};
use crate::rows::Expander;
use std::ops::Range;

/// Keys and values of neighbouring positions.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub rows: PieceRows,
    pub count: usize,
}

#[derive(Clone, Copy)]
pub(crate) enum PieceRows {
    /// The key and the value of the first position; the others follow.
    Dense {
        keys: *const u8,
        values: *const u8,
    },
    Packed {
        keys: PackedRun,
        values: PackedRun,
    },
}

impl DenseKv<'_> {
    fn piece(&self, head: usize, head_dim: usize, rows: Range<usize>) -> Piece {
        let row_bytes = self.dtype.row_bytes(head_dim);
        let at = |row: usize| (head * self.capacity + row) * row_bytes;
        let bytes = at(rows.start)..at(rows.end);
        let rows_of = |cache: &[u8]| cache[bytes.clone()].as_ptr();
        let (keys, values) = (rows_of(self.keys), rows_of(self.values));
        Piece { rows: PieceRows::Dense { keys, values }, count: rows.len() }
    }
}

impl KvView<'_> {
    /// Rows of `head` at these positions, which must be visible; empty pieces among them.
    pub(crate) fn pieces(&self, expand: Expander, head: usize, head_dim: usize, positions: Range<usize>) -> [Piece; 3] {
        match self.rows {
            KvRows::Dense(cache) => [positions, 0..0, 0..0].map(|rows| cache.piece(head, head_dim, rows)),
            KvRows::Sparse(cache) => {
                let [sinks, packed, rest] = cache.segments(&positions);
                let [sinks, rest] = [sinks, rest].map(|rows| cache.dense().piece(head, head_dim, rows));
                let [keys, values] = cache.runs(expand, head, packed.start);
                [sinks, Piece { rows: PieceRows::Packed { keys, values }, count: packed.len() }, rest]
            }
        }
    }

    /// The first key and the first value of these positions as rows of a dense cache: where they are, or copied to
    /// `keys` and `values`, which have room for them if the cache is sparse.
    pub(crate) fn dense_rows(
        &self,
        expand: Expander,
        head: usize,
        head_dim: usize,
        positions: Range<usize>,
        [keys, values]: [&mut [u8]; 2],
    ) -> [*const u8; 2] {
        let whole =
            self.pieces(expand, head, head_dim, positions.clone()).into_iter().find(|p| p.count == positions.len());
        match (self.rows, whole.map(|piece| piece.rows)) {
            (KvRows::Sparse(cache), None | Some(PieceRows::Packed { .. })) => {
                let bytes = positions.len() * self.dtype().row_bytes(head_dim);
                cache.copy_rows(expand, head, positions, [&mut keys[..bytes], &mut values[..bytes]]);
                [keys.as_ptr(), values.as_ptr()]
            }
            (_, Some(PieceRows::Dense { keys, values })) => [keys, values],
            (KvRows::Dense(_), _) => unreachable!("a dense cache is one piece"),
        }
    }
}
