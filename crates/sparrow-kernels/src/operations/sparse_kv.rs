//! Storing into a sparse cache, pruning, and reading it back.

use crate::compute::Compute;
use crate::kernels::prune::prune;
use crate::kv::{BLOCK, KvMut, SparseKv, SparseKvShape, Store};
use crate::parallel::SharedMut;
use std::ops::Range;

/// Multiply-adds that packing one element is worth.
const COST: usize = 16;

impl SparseKv {
    /// Stores keys and values, `[rows, kv_heads, head_dim]` each, of the tokens at `first` and the positions after it,
    /// dense; what was stored from `first` on is forgotten. See [`Compute::store_kv`].
    ///
    /// # Panics
    /// If the lengths do not match, `first` is beyond what is stored or packed already, or the tokens do not fit.
    pub fn store(&mut self, compute: &Compute, first: usize, keys: &[f32], values: &[f32]) {
        let SparseKvShape { dtype, kv_heads, head_dim, capacity, .. } = self.shape;
        let rows = keys.len().checked_div(kv_heads * head_dim).unwrap_or(0);
        assert!(first <= self.len, "store: position {first} of a cache of {} tokens", self.len);
        assert!(self.packed == 0 || first >= self.shape.sinks + self.packed, "store: position {first} is packed");
        assert!(rows <= capacity - first, "store: positions {first}..{} of {capacity}", first + rows);
        let row = first - self.packed;
        if row + rows > self.room {
            self.resize(row, row + rows);
        }
        let cache = KvMut { dtype, keys: &mut self.keys.dense, values: &mut self.values.dense, capacity: self.room };
        compute.store_kv(cache, kv_heads, head_dim, row, keys, values);
        self.len = first + rows;
    }

    /// Prunes and packs every block all of whose tokens are older than the tail. Whether there was one. Parallel over
    /// heads and blocks.
    ///
    /// Magnitudes of keys are multiplied by `key_sizes`, `[kv_heads, head_dim]`, before they are compared: what keys were divided by.
    ///
    /// # Panics
    /// If `key_sizes` has another length.
    pub fn pack(&mut self, compute: &Compute, key_sizes: Option<&[f32]>) -> bool {
        let SparseKvShape { kv_heads, head_dim, sinks, tail, .. } = self.shape;
        let size = key_sizes.map_or(kv_heads * head_dim, <[f32]>::len);
        assert_eq!(size, kv_heads * head_dim, "pack: key_sizes.len() is not kv_heads * head_dim");
        let blocks = self.len.saturating_sub(sinks.saturating_add(tail)).saturating_sub(self.packed) / BLOCK;
        if blocks == 0 {
            return false;
        }
        let (row_bytes, most, room) = (self.shape.row_bytes(), self.most, self.room);
        let before = self.packed / BLOCK;
        let stores = [&mut self.keys, &mut self.values]
            .map(|Store { layout, dense, blocks }| (*layout, &**dense, SharedMut::new(blocks)));
        let work = 2 * blocks * BLOCK * kv_heads * head_dim * COST;
        compute.workers.parallel(2 * kv_heads * blocks, work, &|task| {
            let (layout, dense, to) = &stores[task % 2];
            let (head, block) = (task / 2 / blocks, task / 2 % blocks);
            let from = (head * room + sinks + block * BLOCK) * row_bytes;
            let at = (head * most + before + block) * layout.bytes();
            let mut scratch = compute.workers.scratch.take(2 * BLOCK * head_dim + 1);
            // SAFETY: every block belongs to one task.
            let to = unsafe { to.part(at..at + layout.bytes()) };
            let sizes = key_sizes.filter(|_| task % 2 == 0).map(|sizes| &sizes[head * head_dim..][..head_dim]);
            prune(*layout, &dense[from..from + BLOCK * row_bytes], sizes, &mut scratch, to);
        });
        let rows = self.len - self.packed;
        for store in [&mut self.keys, &mut self.values] {
            for head in 0..kv_heads {
                let at = |row: usize| (head * room + row) * row_bytes;
                store.dense.copy_within(at(sinks + blocks * BLOCK)..at(rows), at(sinks));
            }
        }
        self.packed += blocks * BLOCK;
        if room > self.shape.usual_room() {
            // A long prompt needed more.
            self.resize(self.len - self.packed, self.shape.usual_room());
        }
        true
    }

    /// Forgets all but the first `len` tokens; nothing if there are no more. Tokens whose block was packed keep what is
    /// left of them: where `len` is within a block its first tokens go back to the dense part, pruned as they are,
    /// until the block is full and packed again.
    pub fn truncate(&mut self, compute: &Compute, len: usize) {
        if len >= self.len {
            return;
        }
        let kept = self.packed_within(len);
        self.len = len;
        if kept == self.packed {
            return;
        }
        let sinks = self.shape.sinks;
        let (row_bytes, rows) = (self.shape.row_bytes(), len.saturating_sub(sinks + kept));
        let expand = compute.expander();
        for head in 0..self.shape.kv_heads {
            let runs = self.rows().runs(expand, head, kept);
            let at = (head * self.room + sinks) * row_bytes;
            for (store, run) in [&mut self.keys, &mut self.values].into_iter().zip(runs) {
                // SAFETY: these rows are packed.
                unsafe { run.expand(rows, &mut store.dense[at..at + rows * row_bytes]) };
            }
        }
        self.packed = kept;
    }

    /// Makes this cache hold what a clone of `from`, [truncated](Self::truncate) to `len` tokens, would hold; what it
    /// held is forgotten, its capacity stays. Only what is stored is copied, not what there is room for.
    ///
    /// # Panics
    /// If the shapes differ in more than the capacity, or the tokens do not fit.
    pub fn copy_prefix(&mut self, compute: &Compute, from: &SparseKv, len: usize) {
        let SparseKvShape { capacity, kv_heads, sinks, .. } = self.shape;
        let of_from = SparseKvShape { capacity, ..from.shape };
        assert_eq!(self.shape, of_from, "copy_prefix: the shapes differ in more than the capacity");
        let len = len.min(from.len);
        assert!(len <= capacity, "copy_prefix: {len} tokens into a cache of {capacity}");
        let packed = from.packed_within(len);
        (self.len, self.packed) = (len, packed);
        if self.room < len - packed {
            self.resize(0, len - packed);
        }
        // The tail of what is cut off may have been packed.
        let blocks = packed / BLOCK;
        if self.most < blocks {
            self.resize_blocks(0, blocks);
        }
        let (expand, row_bytes, room) = (compute.expander(), self.shape.row_bytes(), self.room);
        let first = 0..sinks.min(len);
        let rest = len.min(sinks + packed)..len;
        for head in 0..kv_heads {
            for (positions, row) in [(&first, 0), (&rest, first.end)] {
                let at = (head * room + row) * row_bytes..(head * room + row + positions.len()) * row_bytes;
                let to = [&mut self.keys.dense[at.clone()], &mut self.values.dense[at]];
                from.rows().copy_rows(expand, head, positions.clone(), to);
            }
            for (to, store) in [(&mut self.keys, &from.keys), (&mut self.values, &from.values)] {
                let bytes = store.layout.bytes();
                let at = |most: usize| head * most * bytes..(head * most + blocks) * bytes;
                to.blocks[at(self.most)].copy_from_slice(&store.blocks[at(from.most)]);
            }
        }
    }

    /// Copies the rows of head `head` at `positions` as they would be in a dense cache, zeros where elements were
    /// dropped, to `keys` and `values`, `[positions, head_dim]` each.
    ///
    /// # Panics
    /// If the lengths do not match, or there is no such head or position.
    pub fn read(&self, compute: &Compute, head: usize, positions: Range<usize>, keys: &mut [u8], values: &mut [u8]) {
        self.rows().copy_rows(compute.expander(), head, positions, [keys, values]);
    }
}
