//! The differential weight cache: a pool of neurons that follows the active set.

use std::ffi::CStr;

use super::active::word;
use crate::torch::argument::{contiguous, of_shape, of_type, row_stride, two_dimensions};
use crate::torch::fault::{Fault, Result};
use crate::torch::floats::in_order;
use crate::torch::scalar_type::ScalarType;
use crate::torch::shim::{Operator, Stack, Tensor};

/// Makes the pool hold the neurons that `active` `[I]` names, and only these.
///
/// `pool` is `[slots, parts, H]`, contiguous; `neuron_of` `[slots]` int64, of which the first `length` are in use; gate
/// (optional), up and down `[I, H]` of the type of the pool. An added neuron is written over one that leaves (*paired
/// replacement*); others are appended, and the last slots move into the gaps of surplus removals. Returns int64 `[5]`: slots
/// in use, removals, additions, pairs, and slots moved.
///
/// Source: sparse_transformers.
pub struct UpdatePool;

impl Operator for UpdatePool {
    const NAME: &'static CStr = c"update_pool";
    const SCHEMA: &'static CStr = c"update_pool(Tensor(a!) pool, Tensor(b!) neuron_of, Tensor length, Tensor active, \
        Tensor? gate, Tensor up, Tensor down) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let (mut pool, mut neuron_of) = (stack.tensor_mut()?, stack.tensor_mut()?);
        let (length, active, gate) = (stack.tensor()?, stack.tensor()?, stack.optional_tensor()?);
        let (up, down) = (stack.tensor()?, stack.tensor()?);
        let [neurons, hidden] = two_dimensions("up", &up, "[neurons, hidden]")?;
        let mut sources = vec![("up", &up), ("down", &down)];
        if let Some(gate) = &gate {
            sources.insert(0, ("gate", gate));
        }
        let &[slots, ..] = pool.sizes() else {
            return Err(Fault::Shape("pool: expected shape [slots, parts, hidden], found no dimension".into()));
        };
        let slots = slots as usize;
        of_shape("pool", &pool, &[slots, sources.len(), hidden], "[slots, parts, hidden]")?;
        contiguous("pool", &pool)?;
        of_type("neuron_of", &neuron_of, ScalarType::Int64)?;
        of_shape("neuron_of", &neuron_of, &[slots], "[slots]")?;
        contiguous("neuron_of", &neuron_of)?;
        of_type("length", &length, ScalarType::Int64)?;
        of_shape("length", &length, &[], "of a number")?;
        of_type("active", &active, ScalarType::Bool)?;
        of_shape("active", &active, &[neurons], "[neurons]")?;
        let row = hidden * pool.scalar_type().size();
        let mut rows = Vec::new();
        for (name, source) in &sources {
            of_type(name, source, pool.scalar_type())?;
            of_shape(name, source, &[neurons, hidden], "[neurons, hidden]")?;
            rows.push((source.bytes(), row_stride(name, source)? * source.scalar_type().size()));
        }
        for others in [("length", &length), ("active", &active)].iter().chain(&sources) {
            pool.alone("pool", &[*others])?;
            neuron_of.alone("neuron_of", &[*others])?;
        }
        pool.alone("pool", &[("neuron_of", &neuron_of)])?;

        let length = length.bytes().as_chunks().0.first().map_or(0, |&bytes| i64::from_le_bytes(bytes));
        let mut here = in_use(neuron_of.bytes_mut(), length, slots, neurons)?;
        let plan = Plan::new(&mut here, &in_order(&active), slots)?;
        let memory = pool.bytes_mut();
        let slot_bytes = row * rows.len();
        for &(from, to) in &plan.moves {
            memory.copy_within(from * slot_bytes..(from + 1) * slot_bytes, to * slot_bytes);
        }
        for &(neuron, slot) in &plan.loads {
            for (part, (bytes, stride)) in rows.iter().enumerate() {
                let at = slot * slot_bytes + part * row;
                memory[at..at + row].copy_from_slice(&bytes[neuron * stride..][..row]);
            }
        }
        for (bytes, &neuron) in neuron_of.bytes_mut().as_chunks_mut().0.iter_mut().zip(&here) {
            *bytes = (neuron as i64).to_le_bytes();
        }
        let mut counts = Tensor::empty(&[5], ScalarType::Int64)?;
        let numbers = [here.len(), plan.removals, plan.loads.len(), plan.pairs, plan.moves.len()];
        for (bytes, number) in counts.bytes_mut().as_chunks_mut().0.iter_mut().zip(numbers) {
            *bytes = (number as i64).to_le_bytes();
        }
        stack.give(counts.done())
    }
}

/// The neurons of the slots in use.
fn in_use(neuron_of: &[u8], length: i64, slots: usize, neurons: usize) -> Result<Vec<usize>> {
    let length = usize::try_from(length).ok().filter(|&length| length <= slots);
    let length = length.ok_or_else(|| Fault::Option(format!("length: expected one of 0..={slots}")))?;
    let numbers = neuron_of.as_chunks().0[..length].iter().map(|&bytes| i64::from_le_bytes(bytes));
    let known = |neuron: i64| usize::try_from(neuron).ok().filter(|&neuron| neuron < neurons);
    numbers
        .map(|neuron| known(neuron).ok_or_else(|| Fault::Option(format!("neuron_of: found {neuron} of {neurons}"))))
        .collect()
}

/// What is copied where.
struct Plan {
    /// Neurons that left.
    removals: usize,
    /// Of the loads, those into the slot of a neuron that left.
    pairs: usize,
    /// From slot to slot, before the loads.
    moves: Vec<(usize, usize)>,
    /// Neuron and slot.
    loads: Vec<(usize, usize)>,
}

impl Plan {
    /// Lets `here`, the neurons of the slots in use, become those of `active`.
    fn new(here: &mut Vec<usize>, active: &[u8], slots: usize) -> Result<Self> {
        let wanted: Vec<u64> = active.chunks(64).map(word).collect();
        let mut resident = vec![0u64; wanted.len()];
        for &neuron in &*here {
            resident[neuron / 64] |= 1 << (neuron % 64);
        }
        let is_wanted = |neuron: usize| wanted[neuron / 64] >> (neuron % 64) & 1 == 1;
        let gaps: Vec<usize> = (0..here.len()).filter(|&slot| !is_wanted(here[slot])).collect();
        let mut additions = Vec::new();
        for (i, (wanted, resident)) in wanted.iter().zip(&resident).enumerate() {
            let mut bits = (wanted ^ resident) & wanted;
            while bits != 0 {
                additions.push(i * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
        let count = here.len() - gaps.len() + additions.len();
        if count > slots {
            return Err(Fault::Option(format!(
                "active: expected at most {slots} neurons, the slots of the pool, found {count}"
            )));
        }
        let pairs = gaps.len().min(additions.len());
        let (mut moves, mut loads) = (Vec::new(), Vec::with_capacity(additions.len()));
        for (&neuron, &slot) in additions.iter().zip(&gaps) {
            here[slot] = neuron;
            loads.push((neuron, slot));
        }
        for &neuron in &additions[pairs..] {
            loads.push((neuron, here.len()));
            here.push(neuron);
        }
        // Gaps that are left take what is in the last slots, but for gaps that are last themselves.
        let surplus = &gaps[pairs..];
        let (mut first, mut end, mut last) = (0, surplus.len(), here.len());
        while first < end {
            last -= 1;
            if surplus[end - 1] == last {
                end -= 1;
            } else {
                moves.push((last, surplus[first]));
                here[surplus[first]] = here[last];
                first += 1;
            }
        }
        here.truncate(here.len() - surplus.len());
        Ok(Plan { removals: gaps.len(), pairs, moves, loads })
    }
}
