//! What attention sees of a sparse cache: borrowed memory, of a [`SparseKv`] or of somebody else.

use super::block::{BLOCK, BlockLayout, PackedRun, READ_AHEAD};
use super::dense::DenseKv;
use super::sparse::{SparseKv, Store};
use crate::dtype::DType;
use crate::rows::Expander;
use std::fmt;
use std::ops::Range;

/// The packed and the dense part of a sparse cache.
#[derive(Clone, Copy)]
pub struct SparseRows<'a> {
    pub(crate) dtype: DType,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) capacity: usize,
    pub(crate) len: usize,
    sinks: usize,
    packed: usize,
    room: usize,
    most: usize,
    keys: Part<'a>,
    values: Part<'a>,
}

/// Keys, or values.
#[derive(Clone, Copy)]
struct Part<'a> {
    layout: BlockLayout,
    dense: &'a [u8],
    blocks: &'a [u8],
}

impl<'a> Part<'a> {
    fn of(store: &'a Store) -> Self {
        Part { layout: store.layout, dense: &store.dense, blocks: &store.blocks }
    }
}

/// A sparse cache in memory of the caller's: first blocks as [`SparseKv::blocks`] has them, then dense tokens.
#[derive(Clone, Copy)]
pub struct SparseKvParts<'a> {
    /// f32, f16, bf16 or int8.
    pub dtype: DType,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Blocks of each head in use.
    pub blocks: usize,
    /// Blocks of each head there is room for: more than are in use, as kernels read past the last.
    pub room_blocks: usize,
    /// `[kv_heads, room_blocks]` blocks, all of one size.
    pub key_blocks: &'a [u8],
    /// As the blocks of keys, of a size of their own.
    pub value_blocks: &'a [u8],
    /// Dense tokens in use, after those in blocks.
    pub tail: usize,
    /// Dense tokens there is room for.
    pub room: usize,
    /// `[kv_heads, room, head_dim]`.
    pub keys: &'a [u8],
    /// `[kv_heads, room, head_dim]`.
    pub values: &'a [u8],
}

/// Why [`SparseKvParts`] are no cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SparseKvError {
    /// The type is none of a cache, or a part does not have the length that the others demand.
    Part(&'static str),
    /// A block keeps more or fewer elements than its size says.
    Block {
        /// `keys` or `values`.
        part: &'static str,
        /// Its key head.
        head: usize,
        /// Its place among those of the head.
        block: usize,
    },
}

impl fmt::Display for SparseKvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SparseKvError::Part(part) => write!(f, "the {part} of a sparse cache do not fit the rest"),
            SparseKvError::Block { part, head, block } => {
                write!(f, "block {block} of the {part} of head {head} has other elements than its bits say")
            }
        }
    }
}

impl std::error::Error for SparseKvError {}

impl<'a> SparseRows<'a> {
    /// A view of memory whose lengths are checked, and the bits of every block.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn new(parts: SparseKvParts<'a>) -> Result<Self, SparseKvError> {
        let rows = Self::with_lengths(parts)?;
        for (part, of) in [("keys", rows.keys), ("values", rows.values)] {
            let bytes = of.layout.bytes();
            for (head, block) in (0..parts.kv_heads).flat_map(|head| (0..parts.blocks).map(move |block| (head, block)))
            {
                let block_bytes = &of.blocks[(head * parts.room_blocks + block) * bytes..][..bytes];
                let masks = &block_bytes[of.layout.masks_at()..of.layout.elements_at()];
                let kept: usize = masks.iter().map(|byte| byte.count_ones() as usize).sum();
                // Bits after the last element of a row would be read as elements.
                let past = parts.head_dim % 8;
                let row_bytes = of.layout.mask_bytes();
                let stray = masks.chunks_exact(row_bytes.max(1)).any(|row| {
                    let (used, unused) = row.split_at(parts.head_dim.div_ceil(8));
                    unused.iter().any(|&byte| byte != 0)
                        || past > 0 && used.last().is_some_and(|last| last >> past != 0)
                });
                if kept != of.layout.kept || stray {
                    return Err(SparseKvError::Block { part, head, block });
                }
            }
        }
        Ok(rows)
    }

    /// A view of memory whose blocks were checked before.
    ///
    /// # Safety
    /// [`new`](Self::new) must succeed for these bytes.
    ///
    /// # Errors
    /// If a length does not fit.
    pub unsafe fn new_unchecked(parts: SparseKvParts<'a>) -> Result<Self, SparseKvError> {
        Self::with_lengths(parts)
    }

    fn with_lengths(parts: SparseKvParts<'a>) -> Result<Self, SparseKvError> {
        let SparseKvParts { dtype, kv_heads, head_dim, blocks, room_blocks, tail, room, .. } = parts;
        if !DType::CACHES.contains(&dtype) {
            return Err(SparseKvError::Part("element type"));
        }
        if blocks >= room_blocks {
            return Err(SparseKvError::Part("blocks in use"));
        }
        let dense_bytes = kv_heads.checked_mul(room).and_then(|n| n.checked_mul(dtype.row_bytes(head_dim)));
        if tail > room || dense_bytes != Some(parts.keys.len()) || parts.values.len() != parts.keys.len() {
            return Err(SparseKvError::Part("dense tokens"));
        }
        let part = |name, blocks: &'a [u8], dense| {
            let count = kv_heads * room_blocks;
            let bytes = blocks.len().checked_div(count).unwrap_or(0);
            let empty = BlockLayout { dtype, head_dim, kept: 0 };
            let elements = bytes.checked_sub(empty.bytes());
            let kept = elements.filter(|elements| elements.is_multiple_of(empty.size())).map(|n| n / empty.size());
            match kept {
                Some(kept) if kept <= BLOCK * head_dim && bytes * count == blocks.len() && bytes >= READ_AHEAD => {
                    Ok(Part { layout: BlockLayout { kept, ..empty }, dense, blocks })
                }
                _ => Err(SparseKvError::Part(name)),
            }
        };
        Ok(SparseRows {
            dtype,
            kv_heads,
            head_dim,
            capacity: blocks * BLOCK + room,
            len: blocks * BLOCK + tail,
            sinks: 0,
            packed: blocks * BLOCK,
            room,
            most: room_blocks,
            keys: part("blocks of keys", parts.key_blocks, parts.keys)?,
            values: part("blocks of values", parts.value_blocks, parts.values)?,
        })
    }

    /// Whether both look into the same memory.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let same = |a: &Part, b: &Part| std::ptr::eq(a.dense, b.dense) && std::ptr::eq(a.blocks, b.blocks);
        same(&self.keys, &other.keys) && same(&self.values, &other.values)
    }

    /// As [`SparseKv::read`].
    pub(crate) fn copy_rows(
        &self,
        expand: Expander,
        head: usize,
        positions: Range<usize>,
        [keys, values]: [&mut [u8]; 2],
    ) {
        assert!(head < self.kv_heads, "read: head {head} of {}", self.kv_heads);
        assert!(positions.end <= self.len, "read: positions {positions:?} of {}", self.len);
        let row_bytes = self.dtype.row_bytes(self.head_dim);
        assert_eq!(keys.len(), positions.len() * row_bytes, "read: keys.len() is not that of {positions:?}");
        assert_eq!(values.len(), keys.len(), "read: values.len() is not keys.len()");
        let [sinks, packed, rest] = self.segments(&positions);
        for (part, to) in [(&self.keys, keys), (&self.values, values)] {
            let (first, to) = to.split_at_mut(sinks.len() * row_bytes);
            let (middle, last) = to.split_at_mut(packed.len() * row_bytes);
            for (rows, to) in [(sinks.clone(), first), (rest.clone(), last)] {
                let at = |row: usize| (head * self.room + row) * row_bytes;
                to.copy_from_slice(&part.dense[at(rows.start)..at(rows.end)]);
            }
            if !packed.is_empty() {
                // SAFETY: these rows are packed.
                unsafe { self.run(expand, part, head, packed.start).expand(packed.len(), middle) };
            }
        }
    }

    /// Rows of the dense part, of the blocks and of the dense part again that hold these positions.
    pub(crate) fn segments(&self, positions: &Range<usize>) -> [Range<usize>; 3] {
        // Without blocks, sinks and tail are one.
        let sinks = if self.packed == 0 { 0 } else { self.sinks };
        let (from, to) = (positions.start, positions.end.max(positions.start));
        let end = sinks + self.packed;
        let within = |low: usize, high: usize| from.clamp(low, high)..to.clamp(low, high);
        let (packed, rest) = (within(sinks, end), within(end, usize::MAX));
        [within(0, sinks), packed.start - sinks..packed.end - sinks, rest.start - self.packed..rest.end - self.packed]
    }

    /// The dense part.
    pub(crate) fn dense(&self) -> DenseKv<'a> {
        DenseKv { dtype: self.dtype, keys: self.keys.dense, values: self.values.dense, capacity: self.room }
    }

    /// The packed keys and values of a head from row `first` of its blocks on.
    pub(crate) fn runs(&self, expand: Expander, head: usize, first: usize) -> [PackedRun; 2] {
        [&self.keys, &self.values].map(|part| self.run(expand, part, head, first))
    }

    fn run(&self, expand: Expander, part: &Part, head: usize, first: usize) -> PackedRun {
        let at = (head * self.most + first / BLOCK) * part.layout.bytes();
        PackedRun { blocks: part.blocks[at..].as_ptr(), layout: part.layout, row: first % BLOCK, expand }
    }
}

impl SparseKv {
    /// The cache as attention sees it.
    pub fn rows(&self) -> SparseRows<'_> {
        SparseRows {
            dtype: self.shape.dtype,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            capacity: self.shape.capacity,
            len: self.len,
            sinks: self.shape.sinks,
            packed: self.packed,
            room: self.room,
            most: self.most,
            keys: Part::of(&self.keys),
            values: Part::of(&self.values),
        }
    }

    /// Keys and values in blocks, `[kv_heads, blocks]` of one size each, with room for as many as [`SparseKvShape`] asks for.
    ///
    /// [`SparseKvShape`]: crate::SparseKvShape
    pub fn blocks(&self) -> [&[u8]; 2] {
        [&self.keys, &self.values].map(|store| &store.blocks[..store.blocks.len() - READ_AHEAD])
    }
}
