//! Where the weight cache gets neurons from: tensors in memory, mapped files, or direct reads of files on a few threads.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use sparrow_kernels::start_thread;

use super::direct_file::DirectFile;
use super::pool::Load;
use crate::error::{Error, Result};
use crate::tensor::{Memory, Tensor};

/// Reads in flight: disks answer many at once. The threads wait for the disk and compute nothing.
const READERS: usize = 16;
/// Room of one buffer: the most that one read brings.
const BUFFER_BYTES: usize = 512 * 1024;
/// Rows read ahead of use are not more than this many bytes per layer.
const AHEAD_BYTES: usize = 32 << 20;

/// The rows of every neuron of every layer: gate, up and down, or fewer.
#[derive(Debug)]
pub struct NeuronStore {
    layers: Vec<Vec<Part>>,
    readers: Option<Readers>,
}

/// One matrix of a layer, a row per neuron.
#[derive(Debug)]
enum Part {
    /// Copied from memory, or through a map.
    Tensor(Tensor),
    /// Read from a file, the first row at `offset`.
    File { file: Arc<DirectFile>, offset: u64, row_bytes: usize },
}

/// Where the rows of a neuron go: row `p` of the neuron in slot `s` starts at `offsets[p] + s * stride`.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// Where the rows of the first slot are.
    pub offsets: &'a [usize],
    /// From one slot to the next.
    pub stride: usize,
}

impl NeuronStore {
    /// The neurons of layers given as matrices, a row per neuron each. With `direct`, mapped matrices are read from their
    /// files past the page cache; otherwise through the map.
    ///
    /// # Errors
    /// If a file cannot be opened.
    ///
    /// # Panics
    /// If a direct read would not fit a buffer: a row of more than about 500 KB.
    pub fn new(layers: Vec<Vec<Tensor>>, direct: bool) -> Result<Self> {
        let mut files: HashMap<PathBuf, Arc<DirectFile>> = HashMap::new();
        let mut part = |tensor: Tensor| {
            let Some((file, range)) = tensor.file().filter(|_| direct) else { return Ok(Part::Tensor(tensor)) };
            let file = match files.get(file.path()) {
                Some(file) => file.clone(),
                None => {
                    let opened = Arc::new(DirectFile::open(file.path())?);
                    files.insert(file.path().to_owned(), opened.clone());
                    opened
                }
            };
            let row_bytes = tensor.matrix().row_bytes();
            assert!(DirectFile::room(row_bytes) <= BUFFER_BYTES, "rows of {row_bytes} bytes");
            Ok(Part::File { file, offset: range.start as u64, row_bytes })
        };
        let mut layer = |parts: Vec<Tensor>| parts.into_iter().map(&mut part).collect::<Result<_>>();
        let layers = layers.into_iter().map(&mut layer).collect::<Result<_>>()?;
        let readers = (!files.is_empty()).then(Readers::start).transpose()?;
        Ok(NeuronStore { layers, readers })
    }

    /// Writes the rows of `loads`, ascending by neuron, of a layer to their `places` in `out`; `ahead` is what
    /// [`read_ahead`](Self::read_ahead) began for that layer.
    ///
    /// # Errors
    /// If a file cannot be read, or ends early; `out` then holds some of the rows.
    pub fn read(
        &self,
        layer: usize,
        loads: &[Load],
        places: Places,
        ahead: Option<Reading>,
        out: &mut [u8],
    ) -> Result<()> {
        let place = |part: usize, slot: u32| places.offsets[part] + slot as usize * places.stride;
        for (p, part) in self.layers[layer].iter().enumerate() {
            if let Part::Tensor(tensor) = part {
                let matrix = tensor.matrix();
                for &Load { neuron, slot } in loads {
                    let row = matrix.row(neuron as usize);
                    out[place(p, slot)..][..row.len()].copy_from_slice(row);
                }
            }
        }
        let Some(readers) = &self.readers else { return Ok(()) };
        let missing = loads.iter().map(|load| load.neuron).filter(|n| !ahead.as_ref().is_some_and(|a| a.covers(*n)));
        let now = self.start(readers, layer, missing);
        for reading in ahead.into_iter().chain([now]) {
            reading.finish(readers, |part, neuron, row| {
                if let Ok(i) = loads.binary_search_by_key(&neuron, |load| load.neuron) {
                    out[place(part, loads[i].slot)..][..row.len()].copy_from_slice(row);
                }
            })?;
        }
        Ok(())
    }

    /// Begins to read neurons, ascending, of a layer that [`read`](Self::read) will be asked for; none if they are in memory.
    pub fn read_ahead(&self, layer: usize, neurons: impl Iterator<Item = u32>) -> Option<Reading> {
        let readers = self.readers.as_ref()?;
        let row_bytes = |part: &Part| if let Part::File { row_bytes, .. } = part { *row_bytes } else { 0 };
        let neuron_bytes: usize = self.layers[layer].iter().map(row_bytes).sum();
        Some(self.start(readers, layer, neurons.take(AHEAD_BYTES / neuron_bytes.max(1))))
    }

    /// Queues reads of neurons, neighbours in one read.
    fn start(&self, readers: &Readers, layer: usize, neurons: impl Iterator<Item = u32>) -> Reading {
        let neurons: Vec<u32> = neurons.collect();
        let (sender, finished) = channel();
        let mut reads = Vec::new();
        for (part, of) in self.layers[layer].iter().enumerate() {
            let Part::File { file, offset, row_bytes } = of else { continue };
            let longest = (BUFFER_BYTES - DirectFile::room(0)) / row_bytes;
            for run in neurons.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(longest)) {
                let start = offset + u64::from(run[0]) * *row_bytes as u64;
                let range = start..start + (run.len() * row_bytes) as u64;
                reads.push(Read { file: file.clone(), part, first: run[0], row_bytes: *row_bytes, range, at: 0 });
            }
        }
        // Enough batches for every reader to have a few, so that they end together; each within a buffer.
        let most = reads.len().div_ceil(2 * READERS);
        let mut batches = 0;
        let mut queue = readers.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch: Vec<Read> = Vec::with_capacity(most);
        let mut room = 0;
        for read in reads {
            let needed = DirectFile::room((read.range.end - read.range.start) as usize);
            if batch.len() == most || room + needed > BUFFER_BYTES {
                queue.jobs.push_back(Job { reads: std::mem::take(&mut batch), reply: sender.clone() });
                (batches, room) = (batches + 1, 0);
            }
            room += needed;
            batch.push(read);
        }
        if !batch.is_empty() {
            queue.jobs.push_back(Job { reads: batch, reply: sender });
            batches += 1;
        }
        drop(queue);
        readers.shared.wake.notify_all();
        Reading { neurons, batches, finished }
    }
}

/// Reads that were begun.
#[derive(Debug)]
pub struct Reading {
    /// Ascending.
    neurons: Vec<u32>,
    batches: usize,
    finished: Receiver<Result<Batch>>,
}

impl Reading {
    fn covers(&self, neuron: u32) -> bool {
        self.neurons.binary_search(&neuron).is_ok()
    }

    /// Waits, and hands every row to `each(part, neuron, bytes)`.
    fn finish(self, readers: &Readers, mut each: impl FnMut(usize, u32, &[u8])) -> Result<()> {
        for _ in 0..self.batches {
            let gone = |_| Error::option("weights", "a reading thread has ended");
            let Batch { reads, buffer } = self.finished.recv().map_err(gone)??;
            for read in &reads {
                let len = (read.range.end - read.range.start) as usize;
                for (row, neuron) in buffer[read.at..read.at + len].chunks_exact(read.row_bytes).zip(read.first..) {
                    each(read.part, neuron, row);
                }
            }
            readers.shared.spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
        Ok(())
    }
}

/// Rows that follow each other in a file.
#[derive(Debug)]
struct Read {
    file: Arc<DirectFile>,
    part: usize,
    first: u32,
    row_bytes: usize,
    range: Range<u64>,
    /// Where they start in the buffer, once read.
    at: usize,
}

/// Reads that share a buffer.
#[derive(Debug)]
struct Batch {
    reads: Vec<Read>,
    buffer: Memory,
}

#[derive(Debug)]
struct Job {
    reads: Vec<Read>,
    reply: Sender<Result<Batch>>,
}

/// Threads that wait for reads.
#[derive(Debug)]
struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Buffers to use again, as many as were ever in use at once.
    spare: Mutex<Vec<Memory>>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Readers {
    /// As many threads as the system lets start; one is enough.
    fn start() -> Result<Self> {
        let mut readers = Readers { shared: Arc::default(), threads: Vec::new() };
        for _ in 0..READERS {
            let shared = readers.shared.clone();
            match start_thread("reader", move || shared.run()) {
                Ok(thread) => readers.threads.push(thread),
                Err(error) if readers.threads.is_empty() => {
                    return Err(Error::option("weights", format!("no thread could be started to read them ({error})")));
                }
                Err(_) => break,
            }
        }
        Ok(readers)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closed = true;
        queue.jobs.clear();
        drop(queue);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let job = loop {
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None if queue.closed => return,
                    None => queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(queue);
            // Who asked may have given up; then nobody wants the answer.
            let _ = job.reply.send(self.read(job.reads));
        }
    }

    fn read(&self, mut reads: Vec<Read>) -> Result<Batch> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = match spare {
            Some(buffer) => buffer,
            None => Memory::zeroed(BUFFER_BYTES)?,
        };
        let mut start = 0;
        for read in &mut reads {
            let end = start + DirectFile::room((read.range.end - read.range.start) as usize);
            read.at = start + read.file.read(read.range.clone(), &mut buffer[start..end])?;
            start = end;
        }
        Ok(Batch { reads, buffer })
    }
}
