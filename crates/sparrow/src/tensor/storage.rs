//! Bytes of weights: mapped from a file, or held in memory. The one place of this crate with `unsafe`.

use std::fs::File;
use std::ops::{Deref, DerefMut, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Advice, Mmap, MmapMut};

use super::read::{read_at, require_file, truncated};
use crate::error::{Error, Result};

/// A file mapped read-only.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// If it is not a regular file, or cannot be opened or mapped.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        require_file(path)?;
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is read-only; another process that changes the file meanwhile changes values that are read, of which any
        // is as good as another to the code that reads them: what bounds are made of is copied first.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(Arc::new(MappedFile { path: path.to_owned(), file, map }))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Reads a part of the file into memory, not through the map.
    ///
    /// # Errors
    /// If it cannot be read, or the file has become shorter than it was when it was mapped.
    fn read(&self, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < range.len() {
            match read_at(&self.file, &mut out[done..], (range.start + done) as u64) {
                Ok(0) => return Err(truncated(&self.path, range.end as u64, (range.start + done) as u64)),
                Ok(read) => done += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(&self.path)(error)),
            }
        }
        Ok(())
    }

    /// Lets the system take the file's pages out of this process's resident memory and out of the page cache.
    pub fn evict(&self) {
        #[cfg(target_os = "linux")]
        {
            release_pages(&self.map, 0..self.map.len());
            let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}

/// Bytes in memory, page-aligned and on huge pages where the system has them; a page that was never written to takes none.
#[derive(Debug)]
pub struct Memory(MmapMut);

impl Memory {
    /// `len` zeros.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn zeroed(len: usize) -> Result<Self> {
        let map = MmapMut::map_anon(len).map_err(out_of_memory(len))?;
        // Only a hint: where huge pages are switched off the memory still works.
        #[cfg(target_os = "linux")]
        let _ = map.advise(Advice::HugePage);
        Ok(Memory(map))
    }
}

impl Deref for Memory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn out_of_memory(len: usize) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::Io { path: format!("{len} bytes of memory").into(), error }
}

/// Where bytes are.
#[derive(Debug, Clone)]
enum Storage {
    Mapped(Arc<MappedFile>),
    Memory(Arc<Mmap>),
}

/// Bytes of weights; cheap to clone.
#[derive(Debug, Clone)]
pub struct Bytes {
    storage: Storage,
    range: Range<usize>,
}

impl Bytes {
    /// The part `range` of a mapped file.
    ///
    /// # Panics
    /// If the range is outside the file.
    pub fn mapped(file: &Arc<MappedFile>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= file.bytes().len(), "range outside its file");
        Bytes { storage: Storage::Mapped(file.clone()), range }
    }

    /// `memory`, from here on read-only.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn of(memory: Memory) -> Result<Self> {
        let len = memory.len();
        let map = memory.0.make_read_only().map_err(out_of_memory(len))?;
        Ok(Bytes { storage: Storage::Memory(Arc::new(map)), range: 0..len })
    }

    /// The same bytes in memory; those of a mapped file are read from the file, not through the map.
    ///
    /// # Errors
    /// If the file cannot be read or has become shorter, or the memory cannot be had.
    pub fn to_memory(&self) -> Result<Bytes> {
        let Storage::Mapped(file) = &self.storage else { return Ok(self.clone()) };
        let mut memory = Memory::zeroed(self.range.len())?;
        file.read(self.range.clone(), &mut memory)?;
        Bytes::of(memory)
    }

    /// The file they are mapped from, and which part of it.
    pub fn file(&self) -> Option<(&Arc<MappedFile>, Range<usize>)> {
        match &self.storage {
            Storage::Mapped(file) => Some((file, self.range.clone())),
            Storage::Memory(_) => None,
        }
    }

    /// A part of them.
    ///
    /// # Panics
    /// If `range` is out of bounds.
    pub fn part(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.range.len(), "range out of bounds");
        Bytes { range: self.range.start + range.start..self.range.start + range.end, ..self.clone() }
    }

    /// Lets the system take the pages of a mapped file out of this process's resident memory; they come back from the page
    /// cache when touched again. Used after weights were copied into another layout.
    pub fn release(&self) {
        #[cfg(target_os = "linux")]
        if let Storage::Mapped(file) = &self.storage {
            release_pages(&file.map, self.range.clone());
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped(file) => &file.bytes()[self.range.clone()],
            Storage::Memory(map) => &map[self.range.clone()],
        }
    }
}

/// Releases the whole pages inside `range`: a page shared with a neighbour stays.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn release_pages(map: &Mmap, range: Range<usize>) {
    const PAGE: usize = 4096;
    let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
    if start < end {
        // SAFETY: the map is a read-only file mapping, so dropped pages are read again from the file with the same bytes.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    }
}
