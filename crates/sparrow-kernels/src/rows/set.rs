//! Some rows of a weight.

use std::ops::Range;

/// Rows of a weight, in order.
#[derive(Clone)]
pub(crate) enum RowSet<'a> {
    Range(Range<usize>),
    Ids(&'a [u32]),
}

impl<'a> RowSet<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            RowSet::Range(range) => range.len(),
            RowSet::Ids(ids) => ids.len(),
        }
    }

    /// The rows at the places `part`.
    pub(crate) fn part(&self, part: Range<usize>) -> RowSet<'a> {
        match self {
            RowSet::Range(range) => RowSet::Range(range.start + part.start..range.start + part.end),
            RowSet::Ids(ids) => RowSet::Ids(&ids[part]),
        }
    }

    /// The row numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + use<'a> {
        let (range, ids) = match self {
            RowSet::Range(range) => (range.clone(), &[][..]),
            RowSet::Ids(ids) => (0..0, *ids),
        };
        range.chain(ids.iter().map(|&id| id as usize))
    }
}
