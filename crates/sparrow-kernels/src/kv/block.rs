//! One block of a sparse cache: the keys, or the values, of [`BLOCK`] tokens and one head, the smallest left out.
//!
//! | part | content |
//! |---|---|
//! | scales | int8 only: `[BLOCK]` × f32, that of each token's row |
//! | bitmap | `[BLOCK, ⌈head_dim / 32⌉]` × u32: bit i % 32 of word i / 32 is set where element i is kept |
//! | elements | the kept ones, token after token, each ascending |
//!
//! Every block keeps the same number of elements, so all blocks have one size, and a row is found by counting bits.
//! Numbers are little-endian, at any alignment.

use crate::dtype::layout::int8_scale_at;
use crate::dtype::{DType, code_size};
use crate::rows::Expander;
use crate::rows::expand::Expand;

/// Tokens that are pruned and packed together.
pub(crate) const BLOCK: usize = 64;
/// Bytes that may be read past the last element of a block: kernels load whole vectors.
pub(crate) const READ_AHEAD: usize = 64;
/// Bytes of a word of the bitmap, and elements that it stands for.
pub(crate) const WORD: usize = 4;
pub(crate) const WORD_BITS: usize = 32;

/// The shape of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockLayout {
    pub dtype: DType,
    pub head_dim: usize,
    /// Elements kept of the `BLOCK * head_dim`.
    pub kept: usize,
}

impl BlockLayout {
    /// Bytes of one token's bitmap.
    pub fn mask_bytes(self) -> usize {
        self.head_dim.div_ceil(WORD_BITS) * WORD
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        code_size(self.dtype as u8)
    }

    /// Where the bitmaps begin, after the scales.
    pub fn masks_at(self) -> usize {
        if self.dtype == DType::I8 { BLOCK * size_of::<f32>() } else { 0 }
    }

    /// Where the elements begin, after the bitmaps.
    pub fn elements_at(self) -> usize {
        self.masks_at() + BLOCK * self.mask_bytes()
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.elements_at() + self.kept * self.size()
    }
}

/// Neighbouring blocks of one head from row `row` of the first on.
#[derive(Clone, Copy)]
pub(crate) struct PackedRun {
    /// The first block; the others follow it.
    pub blocks: *const u8,
    pub layout: BlockLayout,
    pub row: usize,
    pub expand: Expander,
}

/// Some rows of one packed block.
#[derive(Clone, Copy)]
pub(crate) struct PackedRows {
    /// f32 per row, of int8.
    scales: *const u8,
    /// [`mask_bytes`](BlockLayout::mask_bytes) per row.
    pub masks: *const u8,
    /// The first row's first element.
    pub elements: *const u8,
    /// Where what may be read ends.
    end: *const u8,
    pub count: usize,
    pub layout: BlockLayout,
    expand: Expander,
}

impl PackedRun {
    /// The rows from `first` on that are in one block, `most` at most.
    ///
    /// # Safety
    /// They must be in the run, and the run readable.
    pub unsafe fn rows(&self, first: usize, most: usize) -> PackedRows {
        let (block, row) = ((self.row + first) / BLOCK, (self.row + first) % BLOCK);
        let layout = self.layout;
        // SAFETY: the caller vouches for the block, which has BLOCK bitmaps and as many elements as these have bits.
        unsafe {
            let start = self.blocks.add(block * layout.bytes());
            let masks = start.add(layout.masks_at());
            let skipped: usize =
                (0..row * layout.mask_bytes() / WORD).map(|word| mask_at(masks, word).count_ones() as usize).sum();
            PackedRows {
                scales: start.add(row * size_of::<f32>()),
                masks: masks.add(row * layout.mask_bytes()),
                elements: start.add(layout.elements_at() + skipped * layout.size()),
                end: start.add(layout.bytes() + READ_AHEAD),
                count: most.min(BLOCK - row),
                layout,
                expand: self.expand,
            }
        }
    }

    /// Writes the first `count` rows as they would be in a dense cache.
    ///
    /// # Safety
    /// The run must have them.
    pub(crate) unsafe fn expand(&self, count: usize, to: &mut [u8]) {
        let row_bytes = self.layout.dtype.row_bytes(self.layout.head_dim);
        assert_eq!(to.len(), count * row_bytes);
        let mut done = 0;
        while done < count {
            // SAFETY: the caller vouches for the run, and `to` has room for the rest of its rows.
            unsafe {
                let rows = self.rows(done, count - done);
                rows.expand(to[done * row_bytes..].as_mut_ptr(), row_bytes);
                done += rows.count;
            }
        }
    }
}

impl PackedRows {
    /// Writes the rows as they would be in a dense cache, `row_bytes` each.
    ///
    /// # Safety
    /// They must be writable at `to`.
    pub unsafe fn expand(&self, to: *mut u8, row_bytes: usize) {
        let d = self.layout.head_dim;
        let mut values = self.elements;
        for row in 0..self.count {
            // SAFETY: the kernel is one that this CPU can run, as are all of its table; a row has its bitmap, an
            // element for each of the bits and, of int8, a scale; the caller vouches for `to`.
            unsafe {
                let to = to.add(row * row_bytes);
                let mask = self.masks.add(row * self.layout.mask_bytes());
                values = self.expand.run(self.layout.dtype, &Expand { mask, len: d, values, end: self.end, to });
                if self.layout.dtype == DType::I8 {
                    to.add(int8_scale_at(d)).cast::<f32>().write_unaligned(self.scale(row));
                }
            }
        }
    }

    /// The scale of a row of int8.
    ///
    /// # Safety
    /// There must be such a row.
    #[inline(always)]
    pub unsafe fn scale(&self, row: usize) -> f32 {
        // SAFETY: the caller vouches for the row, which has a scale.
        unsafe { self.scales.add(row * size_of::<f32>()).cast::<f32>().read_unaligned() }
    }
}

/// Word `word` of a bitmap.
///
/// # Safety
/// It must be readable.
#[inline(always)]
pub(crate) unsafe fn mask_at(masks: *const u8, word: usize) -> u32 {
    // SAFETY: the caller vouches for the word.
    u32::from_le(unsafe { masks.add(word * WORD).cast::<u32>().read_unaligned() })
}
