//! Files read at given places past the system's page cache, so that only what the program keeps is in memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tensor::Memory;
use crate::tensor::read::{read_at, truncated};

/// Where direct reads must start and end, tried in turn: a disk's block, a page.
const ALIGNMENTS: [usize; 2] = [512, 4096];

/// A file for reading parts of it. Direct input (`O_DIRECT`) where the file system has it; otherwise the pages of
/// every part are dropped from the page cache after reading.
#[derive(Debug)]
pub struct DirectFile {
    path: PathBuf,
    file: File,
    /// Reads start and end at multiples of this; 1: not direct.
    alignment: usize,
}

impl DirectFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let buffered = DirectFile { path: path.to_owned(), file, alignment: 1 };
        #[cfg(target_os = "linux")]
        if let Some(direct) = buffered.direct() {
            return Ok(direct);
        }
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(&buffered.file, 0, None, rustix::fs::Advice::Random);
        Ok(buffered)
    }

    /// The same file past the page cache, if a small read goes through.
    #[cfg(target_os = "linux")]
    fn direct(&self) -> Option<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&self.path).ok()?;
        let mut probe = Memory::zeroed(ALIGNMENTS[1]).ok()?;
        let mut works = |alignment: usize| read_at(&file, &mut probe[..alignment], alignment as u64).is_ok();
        let alignment = ALIGNMENTS.into_iter().find(|&alignment| works(alignment))?;
        Some(DirectFile { path: self.path.clone(), file, alignment })
    }

    /// Bytes of buffer that reading `len` bytes may take.
    pub fn room(len: usize) -> usize {
        len.next_multiple_of(ALIGNMENTS[1]) + ALIGNMENTS[1]
    }

    /// Reads the part `range` and returns where in `buffer` it starts. The buffer must start at a multiple of a page in
    /// memory and have [`room`](Self::room).
    ///
    /// # Errors
    /// If the file cannot be read, or ends before the part does.
    pub fn read(&self, range: Range<u64>, buffer: &mut [u8]) -> Result<usize> {
        let alignment = self.alignment as u64;
        let start = range.start / alignment * alignment;
        let skip = (range.start - start) as usize;
        let needed = (range.end - start) as usize;
        let wanted = needed.next_multiple_of(self.alignment);
        let mut done = 0;
        while done < needed {
            match read_at(&self.file, &mut buffer[done..wanted], start + done as u64) {
                // A direct read that is not a whole number of blocks met the end of the file.
                Ok(0) => return Err(self.too_short(&range, start + done as u64)),
                Ok(read) if done + read < needed && !read.is_multiple_of(self.alignment) => {
                    return Err(self.too_short(&range, start + (done + read) as u64));
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(&self.path)(error)),
            }
        }
        #[cfg(target_os = "linux")]
        if self.alignment == 1 {
            let len = std::num::NonZeroU64::new(needed as u64);
            let _ = rustix::fs::fadvise(&self.file, start, len, rustix::fs::Advice::DontNeed);
        }
        Ok(skip)
    }

    fn too_short(&self, range: &Range<u64>, end: u64) -> Error {
        truncated(&self.path, range.end, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_any_part_and_refuses_parts_past_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..20_001u32).map(|i| (i * 7 + i / 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let best = DirectFile::open(file.path()).unwrap();
        let buffered = DirectFile { path: file.path().into(), file: File::open(file.path()).unwrap(), alignment: 1 };
        for direct in [best, buffered] {
            let mut buffer = Memory::zeroed(DirectFile::room(bytes.len())).unwrap();
            for range in [0..1, 0..20_001, 511..513, 4095..12_289, 20_000..20_001, 512..1024, 19_999..20_001] {
                let skip = direct.read(range.start as u64..range.end as u64, &mut buffer).unwrap();
                assert_eq!(buffer[skip..skip + range.len()], bytes[range.clone()], "{range:?}");
            }
            for range in [20_000..20_002, 30_000..30_001, 0..20_002] {
                let message = direct.read(range, &mut buffer).unwrap_err().to_string();
                assert!(message.contains("truncated") && message.contains(file.path().to_str().unwrap()), "{message}");
            }
        }
    }
}
