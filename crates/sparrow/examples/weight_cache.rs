//! What it costs to have the active neurons of a token in one packed buffer: updating the weight cache against building the
//! buffer anew by selecting rows, from weights in memory, at given overlaps of consecutive active sets and at the demo
//! model's. Both copy on one thread; they take turns; medians per layer and token.
//!
//! `cargo run --release -p sparrow --example weight_cache`

use std::path::Path;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sparrow::internals::backend::{ActiveNeurons, Observer};
use sparrow::internals::residency::{self, Policy, WeightCache};
use sparrow::{KvOptions, Load, SessionOptions};

/// Layers that take turns, so that weights come from memory, not from caches.
const LAYERS: usize = 6;
const STEPS: usize = 60;
const BF16: usize = 2;

/// Gate, up and down of one layer, rows of `row` bytes.
struct Layer {
    parts: [Vec<u8>; 3],
    row: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{:<28} {:>9} {:>8} {:>12} {:>14} {:>14} {:>10} {:>10}",
        "active sets", "overlap", "active", "update µs", "select new µs", "select kept µs", "÷ new", "÷ kept"
    );
    for overlap in [0.5, 0.8, 0.95] {
        let (neurons, hidden) = (8192, 3072);
        let steps = (0..LAYERS).map(|layer| forced(neurons, 0.1, overlap, layer as u64)).collect();
        measure("forced, 8192 × 3072 bf16", neurons, hidden, steps);
    }
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
    let loaded = Load::new(&demo).selector(Some("gate".parse()?)).open(|_, _, _| ())?;
    let spec = &loaded.model.spec;
    let (neurons, hidden) = (spec.intermediate_size, spec.hidden_size);
    let text = std::fs::read_to_string(demo.join("sample.txt"))?;
    let ids = loaded.tokenizer()?.encode(&text, false)?;
    let options = SessionOptions { sequences: 1, capacity: STEPS + 1, kv: KvOptions::default() };
    let mut masks = Masks { layers: vec![Vec::new(); spec.num_layers] };
    loaded.session(options)?.observe(0, &ids[..STEPS + 1], &mut masks)?;
    measure("demo model's text, its shape", neurons, hidden, masks.layers.clone());
    let at_3b = masks.layers;
    measure("demo model's text, × 3072", neurons, 3072, at_3b);
    Ok(())
}

/// The masks of every token, by layer.
struct Masks {
    layers: Vec<Vec<Vec<u64>>>,
}

impl Observer for Masks {
    fn mlp(&mut self, layer: usize, _: &[f32], m: usize, active: Option<ActiveNeurons>) {
        let masks = active.expect("the gate selects").masks;
        self.layers[layer].extend(masks.chunks_exact(masks.len() / m).map(<[u64]>::to_vec));
    }
}

/// Random sets of a fraction `active` of the neurons, each sharing `overlap` of its neurons with the one before.
fn forced(neurons: usize, active: f64, overlap: f64, seed: u64) -> Vec<Vec<u64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut ids: Vec<usize> = (0..neurons).collect();
    let keep = (neurons as f64 * active).round() as usize;
    let replaced = (keep as f64 * (1.0 - overlap)).round() as usize;
    let mut below = |n: usize| (rng.next_u64() % n as u64) as usize;
    (0..neurons).for_each(|i| ids.swap(i, i + below(neurons - i)));
    let step = |_| {
        for i in 0..replaced {
            ids.swap(i, i + below(keep - i));
            ids.swap(keep + i, keep + i + below(neurons - keep - i));
            ids.swap(i, keep + i);
        }
        let mut mask = vec![0; neurons.div_ceil(64)];
        ids[..keep].iter().for_each(|&i| mask[i / 64] |= 1 << (i % 64));
        mask
    };
    (0..STEPS + 1).map(step).collect()
}

fn ones(mask: &[u64]) -> Vec<u32> {
    (0..mask.len() as u32 * 64).filter(|&i| mask[i as usize / 64] >> (i % 64) & 1 == 1).collect()
}

fn measure(name: &str, neurons: usize, hidden: usize, steps: Vec<Vec<Vec<u64>>>) {
    let row = hidden * BF16;
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut random = || {
        let mut bytes = vec![0; neurons * row];
        bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&rng.next_u64().to_le_bytes()));
        bytes
    };
    let layers: Vec<Layer> = steps.iter().map(|_| Layer { parts: std::array::from_fn(|_| random()), row }).collect();
    // Room for every set: the pool is exactly the active set.
    let new = |_: &Layer| WeightCache::new(neurons, 3 * row, neurons, Policy::Exact).expect("memory");
    let mut caches: Vec<WeightCache> = layers.iter().map(new).collect();
    let mut kept: Vec<[Vec<u8>; 3]> = layers.iter().map(|_| Default::default()).collect();
    let (mut update, mut select_new, mut select_kept) = (Vec::new(), Vec::new(), Vec::new());
    let (mut shared, mut active, mut loaded, mut bound) = (0, 0, 0, 0);
    for step in 0..STEPS + 1 {
        for (l, layer) in layers.iter().enumerate() {
            let mask = &steps[l][step];
            let ids = ones(mask);
            let before = caches[l].traffic().loaded;
            if step > 0 {
                let hits =
                    mask.iter().zip(&steps[l][step - 1]).map(|(a, b)| (a & b).count_ones() as usize).sum::<usize>();
                (shared, active, bound) = (shared + hits, active + ids.len(), bound + ids.len() - hits);
            }
            let start = Instant::now();
            load(&mut caches[l], layer, mask);
            let updated = start.elapsed();
            let start = Instant::now();
            let fresh = layer.parts.each_ref().map(|part| {
                let mut out = Vec::with_capacity(ids.len() * row);
                select(part, row, &ids, &mut out);
                out
            });
            let selected = start.elapsed();
            let start = Instant::now();
            for (part, out) in layer.parts.iter().zip(&mut kept[l]) {
                out.clear();
                select(part, row, &ids, out);
            }
            let selected_kept = start.elapsed();
            if step % 20 == 0 {
                check(&mut caches[l], mask, row, &fresh);
                assert_eq!(fresh, kept[l]);
            }
            if step > 0 {
                loaded += caches[l].traffic().loaded - before;
                update.push(updated.as_secs_f64());
                select_new.push(selected.as_secs_f64());
                select_kept.push(selected_kept.as_secs_f64());
            }
        }
    }
    assert_eq!(loaded, bound as u64, "moved more than what is wanted and was not there");
    let [update, new, kept] = [update, select_new, select_kept].map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2] * 1e6
    });
    let steps = (STEPS * layers.len()) as f64;
    println!(
        "{name:<28} {:>9.3} {:>8.0} {update:>12.1} {new:>14.1} {kept:>14.1} {:>9.1}× {:>9.1}×",
        shared as f64 / active as f64,
        active as f64 / steps,
        new / update,
        kept / update
    );
}

/// The cache's way: what is missing, over what is not wanted any more.
fn load(cache: &mut WeightCache, layer: &Layer, mask: &[u64]) {
    let (slot_bytes, row) = (cache.slot_bytes(), layer.row);
    cache.begin(mask);
    let copy = |loads: &[residency::Load], pool: &mut [u8]| {
        for load in loads {
            let slot = &mut pool[load.slot as usize * slot_bytes..][..3 * row];
            for (part, to) in layer.parts.iter().zip(slot.chunks_exact_mut(row)) {
                to.copy_from_slice(&part[load.neuron as usize * row..][..row]);
            }
        }
        Ok::<(), ()>(())
    };
    cache.next_pass(copy).expect("copying does not fail");
}

/// The other way: every active row, in order.
fn select(part: &[u8], row: usize, ids: &[u32], out: &mut Vec<u8>) {
    ids.iter().for_each(|&id| out.extend_from_slice(&part[id as usize * row..][..row]));
}

/// Both hold the same rows.
fn check(cache: &mut WeightCache, mask: &[u64], row: usize, selected: &[Vec<u8>; 3]) {
    let slot_bytes = cache.slot_bytes();
    let loaded = cache.traffic().loaded;
    cache.begin(mask);
    let pass = cache.next_pass(|_, _| Err("nothing is missing")).expect("nothing to load").expect("one pass");
    for (i, &slot) in pass.slots.iter().enumerate() {
        let slot = &pass.pool[slot as usize * slot_bytes..];
        for (part, from) in selected.iter().zip(slot.chunks_exact(row)) {
            assert_eq!(part[i * row..][..row], *from);
        }
    }
    assert_eq!(cache.traffic().loaded, loaded);
}
