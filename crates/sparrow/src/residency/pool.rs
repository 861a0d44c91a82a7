//! The differential weight cache: a bounded pool of neurons that follows the active set from token to token.
//!
//! Consecutive tokens share most of their active neurons, so a pool that holds the last ones needs only the difference: the
//! XOR of the bitmaps of resident and wanted neurons gives removals and additions. An addition is written over a removal
//! (*paired replacement*); surplus additions are appended, and the last slots move into the gaps of surplus removals, so
//! that slots `0..len` are always in use. Kernels read the pool where it is.
//!
//! Sources: sparse_transformers (paired replacement, pool = active set), LLM in a flash (arXiv 2312.11514, sliding window).

use std::fmt;
use std::str::FromStr;

use sparrow_kernels::mask_words;

use crate::error::Result;
use crate::tensor::Memory;

/// Slots start at multiples of this.
const SLOT_ALIGNMENT: usize = 64;
/// No slot.
const NONE: u32 = u32::MAX;

/// How long a neuron stays in the pool after it was last wanted. Whatever the policy, room that is needed is taken from the
/// neurons that were not wanted for the longest time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Not at all: the pool is the active set.
    Exact,
    /// While it was wanted in one of the last so many steps, the present one included.
    Window(u32),
    /// Until its room is needed.
    Lru,
}

impl Policy {
    /// Steps after which a neuron that is not wanted any more leaves.
    fn steps(self) -> u64 {
        match self {
            Policy::Exact => 1,
            Policy::Window(steps) => u64::from(steps),
            Policy::Lru => u64::MAX,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Exact => f.write_str("exact"),
            Policy::Window(steps) => write!(f, "window={steps}"),
            Policy::Lru => f.write_str("lru"),
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let window = text.strip_prefix("window=").and_then(|steps| steps.parse().ok().filter(|&steps| steps > 0));
        match (text, window) {
            ("exact", _) => Ok(Policy::Exact),
            ("lru", _) => Ok(Policy::Lru),
            (_, Some(steps)) => Ok(Policy::Window(steps)),
            _ => Err(format!("unknown cache policy {text:?}: use exact, window=N (N at least 1) or lru")),
        }
    }
}

/// Size and policy of the caches of a model, `FRACTION[,POLICY][,prefer=G][,mmap]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheSpec {
    /// Fraction of each layer's neurons that there is room for, above 0 and at most 1.
    fraction: f64,
    /// What stays.
    pub policy: Policy,
    /// How many times as high as others a neuron must score that is not there, at least 1: so fewer are read (DIP, arXiv 2412.01380).
    pub prefer: f32,
    /// Neurons are copied through a map of the file, which the system's page cache backs, not read past it.
    pub mapped: bool,
}

impl CacheSpec {
    /// Room for `fraction` of each layer's neurons.
    ///
    /// # Errors
    /// If the fraction is not above 0 and at most 1.
    pub fn new(fraction: f64, policy: Policy) -> std::result::Result<Self, String> {
        if fraction > 0.0 && fraction <= 1.0 {
            Ok(CacheSpec { fraction, policy, prefer: 1.0, mapped: false })
        } else {
            Err(format!("the fraction of neurons to cache must be above 0 and at most 1, found {fraction}"))
        }
    }

    /// Slots for a layer of so many neurons: at least one.
    pub fn slots(&self, neurons: usize) -> usize {
        ((neurons as f64 * self.fraction).round() as usize).clamp(1, neurons.max(1))
    }
}

impl fmt::Display for CacheSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.fraction, self.policy)?;
        if self.prefer > 1.0 {
            write!(f, ",prefer={}", self.prefer)?;
        }
        f.write_str(if self.mapped { ",mmap" } else { "" })
    }
}

impl FromStr for CacheSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (text, mapped) = text.strip_suffix(",mmap").map_or((text, false), |rest| (rest, true));
        let (text, prefer) = match text.rsplit_once(",prefer=") {
            None => (text, 1.0),
            Some((rest, times)) => match times.parse::<f32>() {
                Ok(prefer) if prefer.is_finite() && prefer >= 1.0 => (rest, prefer),
                _ => return Err(format!("prefer={times}: must be a number, 1 or above")),
            },
        };
        let (fraction, policy) = text.split_once(',').unwrap_or((text, "lru"));
        let wrong = |_| format!("the fraction of neurons to cache must be a number, found {fraction:?}");
        let spec = CacheSpec::new(fraction.parse().map_err(wrong)?, policy.parse()?)?;
        Ok(CacheSpec { prefer, mapped, ..spec })
    }
}

/// A neuron to be written into a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Which neuron.
    pub neuron: u32,
    /// Into the bytes from `slot * slot_bytes` of the pool on.
    pub slot: u32,
}

/// Neurons that are wanted and in the pool.
#[derive(Debug)]
pub struct Pass<'a> {
    /// Ascending.
    pub neurons: &'a [u32],
    /// The slot of each.
    pub slots: &'a [u32],
    /// All slots in use, `slot_bytes` each; the first starts at a multiple of 64, in memory too.
    pub pool: &'a [u8],
}

/// Counts of neurons since the cache was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Wanted and already there.
    pub hits: u64,
    /// Written into the pool from outside.
    pub loaded: u64,
    /// Moved from the last slot into a gap.
    pub shifted: u64,
}

/// The pool of one layer. A plain value: who may change it has it borrowed mutably, so threads cannot disagree about it.
#[derive(Debug)]
pub struct WeightCache {
    policy: Policy,
    slots: usize,
    slot_bytes: usize,
    pool: Memory,
    /// Slot → neuron, one entry per slot in use.
    neuron_of: Vec<u32>,
    /// Neuron → slot, or [`NONE`].
    slot_of: Vec<u32>,
    /// The neurons that have a slot.
    resident: Vec<u64>,
    /// Neuron → the last step that wanted it.
    last_wanted: Vec<u64>,
    step: u64,
    /// What the passes of this step have not served yet, and whether there was one.
    remaining: Vec<u64>,
    begun: bool,
    /// Working memory of a pass.
    serving: Vec<u64>,
    removals: Vec<u32>,
    loads: Vec<Load>,
    pass_neurons: Vec<u32>,
    pass_slots: Vec<u32>,
    traffic: Traffic,
}

impl WeightCache {
    /// An empty pool for a layer of `neurons` neurons of `neuron_bytes` bytes each, with room for `slots` of them.
    ///
    /// # Errors
    /// If the memory cannot be had.
    ///
    /// # Panics
    /// If a size is 0.
    pub fn new(neurons: usize, neuron_bytes: usize, slots: usize, policy: Policy) -> Result<Self> {
        assert!(neurons > 0 && neuron_bytes > 0 && slots > 0, "an empty cache");
        let slot_bytes = neuron_bytes.next_multiple_of(SLOT_ALIGNMENT);
        let (slots, words) = (slots.min(neurons), mask_words(neurons));
        Ok(WeightCache {
            policy,
            slots,
            slot_bytes,
            // Pages that were never written to are not resident.
            pool: Memory::zeroed(slots * slot_bytes)?,
            neuron_of: Vec::with_capacity(slots),
            slot_of: vec![NONE; neurons],
            resident: vec![0; words],
            last_wanted: vec![0; neurons],
            step: 0,
            remaining: vec![0; words],
            begun: false,
            serving: vec![0; words],
            removals: Vec::with_capacity(slots),
            loads: Vec::with_capacity(slots),
            pass_neurons: Vec::with_capacity(slots),
            pass_slots: Vec::with_capacity(slots),
            traffic: Traffic::default(),
        })
    }

    /// Begins a step that wants the neurons of the bitmap `wanted`, `[ceil(neurons / 64)]`.
    ///
    /// # Panics
    /// If the bitmap has another length.
    pub fn begin(&mut self, wanted: &[u64]) {
        self.step += 1;
        self.begun = true;
        self.remaining.copy_from_slice(wanted);
        for neuron in ones(wanted) {
            self.last_wanted[neuron as usize] = self.step;
        }
    }

    /// Makes those that are still wanted resident, as many as there is room for, and says where they are: a step that wants no more
    /// than there are slots has one pass. None when all have been served.
    ///
    /// `load` writes neurons, ascending, into their slots of the pool. If it fails the cache is empty afterwards, and whole.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn next_pass<E>(
        &mut self,
        load: impl FnOnce(&[Load], &mut [u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<Pass<'_>>, E> {
        let first = std::mem::take(&mut self.begun);
        if !first && self.remaining.iter().all(|&word| word == 0) {
            return Ok(None);
        }
        self.choose();
        self.make_room();
        if !self.loads.is_empty() {
            if let Err(error) = load(&self.loads, &mut self.pool) {
                self.clear();
                return Err(error);
            }
            for &Load { neuron, slot } in &self.loads {
                self.neuron_of[slot as usize] = neuron;
                self.slot_of[neuron as usize] = slot;
                self.resident[neuron as usize / 64] |= 1 << (neuron % 64);
            }
            self.traffic.loaded += self.loads.len() as u64;
        }
        self.pass_neurons.clear();
        self.pass_neurons.extend(ones(&self.serving));
        self.pass_slots.clear();
        self.pass_slots.extend(self.pass_neurons.iter().map(|&neuron| self.slot_of[neuron as usize]));
        let pool = &self.pool[..self.neuron_of.len() * self.slot_bytes];
        Ok(Some(Pass { neurons: &self.pass_neurons, slots: &self.pass_slots, pool }))
    }

    /// Which of the remaining neurons this pass serves: those that are there, and as many others as there is room for.
    fn choose(&mut self) {
        let mut hits = 0;
        for ((serving, &remaining), &resident) in self.serving.iter_mut().zip(&self.remaining).zip(&self.resident) {
            *serving = remaining & resident;
            hits += serving.count_ones() as usize;
        }
        self.loads.clear();
        for (word, &resident) in self.resident.iter().enumerate() {
            let additions = (self.remaining[word] ^ resident) & self.remaining[word];
            for bit in bits(additions).take(self.slots - hits - self.loads.len()) {
                self.serving[word] |= 1 << bit;
                self.loads.push(Load { neuron: word as u32 * 64 + bit, slot: NONE });
            }
        }
        self.remaining.iter_mut().zip(&self.serving).for_each(|(remaining, serving)| *remaining &= !serving);
        self.traffic.hits += hits as u64;
    }

    /// Gives every load a slot: those of neurons that leave, then new ones; fills the gaps of surplus removals.
    fn make_room(&mut self) {
        // Slots of the neurons that leave: first those whose time is over.
        let (step, keep) = (self.step, self.policy.steps());
        self.removals.clear();
        if keep < u64::MAX {
            let expired = |&neuron: &u32| step - self.last_wanted[neuron as usize] >= keep;
            let slots = self.neuron_of.iter().enumerate().filter(|(_, neuron)| expired(neuron));
            self.removals.extend(slots.map(|(slot, _)| slot as u32));
        }
        let expired = self.removals.len();
        let missing = (self.neuron_of.len() + self.loads.len()).saturating_sub(expired + self.slots);
        if missing > 0 {
            // Then those that were not wanted for the longest time.
            let age = |slot: u32| {
                let neuron = self.neuron_of[slot as usize];
                (self.last_wanted[neuron as usize], neuron)
            };
            let may_leave =
                |neuron: u32| !is_set(&self.serving, neuron) && step - self.last_wanted[neuron as usize] < keep;
            let slots = self.neuron_of.iter().enumerate().filter(|(_, neuron)| may_leave(**neuron));
            self.removals.extend(slots.map(|(slot, _)| slot as u32));
            let candidates = &mut self.removals[expired..];
            candidates.select_nth_unstable_by_key(missing - 1, |&slot| age(slot));
            self.removals.truncate(expired + missing);
            self.removals.sort_unstable();
        }
        for &slot in &self.removals {
            let neuron = std::mem::replace(&mut self.neuron_of[slot as usize], NONE);
            self.slot_of[neuron as usize] = NONE;
            self.resident[neuron as usize / 64] &= !(1 << (neuron % 64));
        }
        let pairs = self.removals.len().min(self.loads.len());
        for (load, &slot) in self.loads.iter_mut().zip(&self.removals) {
            load.slot = slot;
        }
        for load in &mut self.loads[pairs..] {
            load.slot = self.neuron_of.len() as u32;
            self.neuron_of.push(NONE);
        }
        // Of surplus gaps, those that are not at the end take what is. Paired slots are never at the end: the gaps lie above them.
        let gaps = &self.removals[pairs..];
        let (mut last, len) = (self.neuron_of.len(), self.neuron_of.len() - gaps.len());
        for gap in gaps.iter().map(|&gap| gap as usize).take_while(|&gap| gap < len) {
            last -= 1;
            while self.neuron_of[last] == NONE {
                last -= 1;
            }
            let from = last * self.slot_bytes;
            self.pool.copy_within(from..from + self.slot_bytes, gap * self.slot_bytes);
            let neuron = self.neuron_of[last];
            (self.neuron_of[gap], self.slot_of[neuron as usize]) = (neuron, gap as u32);
            self.traffic.shifted += 1;
        }
        self.neuron_of.truncate(len);
    }

    /// Forgets every neuron.
    pub fn clear(&mut self) {
        self.neuron_of.clear();
        self.slot_of.fill(NONE);
        self.resident.fill(0);
        self.remaining.fill(0);
    }

    /// Bitmap of the neurons in the pool.
    pub fn resident(&self) -> &[u64] {
        &self.resident
    }

    /// Whether a neuron is in the pool.
    pub fn contains(&self, neuron: u32) -> bool {
        is_set(&self.resident, neuron)
    }

    /// Neurons in the pool.
    pub fn len(&self) -> usize {
        self.neuron_of.len()
    }

    /// Whether the pool holds nothing.
    pub fn is_empty(&self) -> bool {
        self.neuron_of.is_empty()
    }

    /// Neurons there is room for.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes from one slot to the next: those of a neuron, rounded up to a multiple of 64.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// What was found, loaded and moved since the cache was made.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Slot → neuron and neuron → slot, for tests of what holds between them.
    pub fn maps(&self) -> (&[u32], impl Fn(u32) -> Option<u32> + '_) {
        (&self.neuron_of, |neuron| Some(self.slot_of[neuron as usize]).filter(|&slot| slot != NONE))
    }
}

/// Numbers of the bits set in a word, ascending.
fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

/// Numbers of the bits set in a bitmap, ascending.
pub fn ones(mask: &[u64]) -> impl Iterator<Item = u32> + '_ {
    mask.iter().enumerate().flat_map(|(word, &value)| bits(value).map(move |bit| word as u32 * 64 + bit))
}

fn is_set(mask: &[u64], i: u32) -> bool {
    mask[i as usize / 64] >> (i % 64) & 1 == 1
}
