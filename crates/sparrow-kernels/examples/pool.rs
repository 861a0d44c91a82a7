//! The thread pool against others, on 2 threads: `cargo run --release -p sparrow-kernels --example pool`.
//!
//! An empty region; a layer, alone; and tokens of many small regions, alone and beside another process that spins on
//! one core. All pools run the same tasks, taking turns; medians.

use std::hint::black_box;
use std::num::NonZero;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use paralight::prelude::{CpuPinningPolicy, RangeStrategy, ThreadCount, ThreadPoolBuilder};
use sparrow_kernels::*;

const THREADS: usize = 2;
/// Tasks of a region, as many as `Compute::linear` would make.
const TASKS: usize = 4 * THREADS;

type Task<'a> = &'a (dyn Fn(usize) + Sync);
/// Runs every task below a number once.
type Run<'a> = dyn FnMut(usize, Task) + 'a;
/// A pool's name and how it runs tasks.
type Runner<'a> = (&'static str, Box<Run<'a>>);

/// A linear layer of one token, in tasks of equal rows.
struct Layer {
    compute: Compute,
    size: usize,
    weights: Vec<u8>,
    x: Vec<f32>,
    out: Vec<Mutex<Vec<f32>>>,
}

impl Layer {
    fn new(size: usize) -> Self {
        let mut half = [0; 2];
        encode(DType::BF16, &[0.5], &mut half);
        let weights = half.repeat(size * size);
        let out = (0..TASKS).map(|_| Mutex::new(vec![0.0; size / TASKS])).collect();
        Self { compute: Compute::new(Some(1)), size, weights, x: vec![0.25; size], out }
    }

    fn task(&self, task: usize) {
        let rows = self.size / TASKS;
        let all = Matrix::new(DType::BF16, self.size, self.size, &self.weights);
        let mut out = self.out[task].lock().unwrap();
        let part =
            LinearPart { weights: all.row_range(task * rows..(task + 1) * rows).into(), bias: None, out: &mut out };
        self.compute.linear(&self.x, 1, &mut [part]);
    }

    /// Whether every task has run since the last check.
    fn check(&self) {
        for out in &self.out {
            let mut out = out.lock().unwrap();
            assert!(out.iter().all(|&v| v == self.size as f32 / 8.0));
            out.fill(0.0);
        }
    }
}

fn chili_run(scope: &mut chili::Scope, tasks: std::ops::Range<usize>, f: Task) {
    if tasks.len() <= 1 {
        tasks.for_each(f);
        return;
    }
    let middle = tasks.start + tasks.len() / 2;
    scope.join(|s| chili_run(s, tasks.start..middle, f), |s| chili_run(s, middle..tasks.end, f));
}

fn rayon_run(pool: &rayon::ThreadPool, tasks: usize, f: Task) {
    use rayon::prelude::*;
    pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(f));
}

fn paralight_run(pool: &mut paralight::prelude::ThreadPool, tasks: usize, f: Task) {
    use paralight::prelude::*;
    (0..tasks).into_par_iter().with_thread_pool(pool).for_each(f);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median seconds of `f` for each runner, which take turns: `turns` times, `calls` calls each, after one that does not
/// count.
fn measure(runners: &mut [Runner], turns: usize, calls: usize, f: &dyn Fn(&mut Run)) -> Vec<f64> {
    let mut times: Vec<Vec<f64>> = runners.iter().map(|_| Vec::new()).collect();
    for _ in 0..turns {
        for ((_, run), times) in runners.iter_mut().zip(&mut times) {
            f(run);
            for _ in 0..calls {
                let start = Instant::now();
                f(run);
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    times.into_iter().map(median).collect()
}

/// Another process that keeps one core busy, until it is dropped.
struct Neighbour(Child);

impl Neighbour {
    fn start() -> Self {
        let child = Command::new(std::env::current_exe().unwrap()).arg("spin").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        Self(child)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("spin") {
        loop {
            black_box(0);
        }
    }
    let ours = Pool::new(THREADS);
    // The calling thread is one of the two, as in our pool.
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(THREADS).use_current_thread().build().unwrap();
    let chili =
        chili::ThreadPool::with_config(chili::Config { thread_count: NonZero::new(THREADS), ..Default::default() });
    let mut scope = chili.scope();
    let mut paralight = ThreadPoolBuilder {
        num_threads: ThreadCount::try_from(THREADS).unwrap(),
        range_strategy: RangeStrategy::WorkStealing,
        cpu_pinning: CpuPinningPolicy::No,
    }
    .build();
    let mut runners: [Runner; 5] = [
        ("sparrow", Box::new(|tasks, f| ours.run(tasks, f))),
        ("rayon", Box::new(|tasks, f| rayon_run(&rayon, tasks, f))),
        ("chili", Box::new(|tasks, f| chili_run(&mut scope, 0..tasks, f))),
        ("paralight", Box::new(|tasks, f| paralight_run(&mut paralight, tasks, f))),
        ("one thread", Box::new(|tasks, f| (0..tasks).for_each(f))),
    ];
    let bandwidth = read_bandwidth(&Compute::new(Some(THREADS)));
    println!("read bandwidth {bandwidth:.1} GB/s, {THREADS} threads, {TASKS} tasks in a region");

    let empty = measure(&mut runners, 20, 500, &|run| run(THREADS, &|task| _ = black_box(task)));

    // 28 layers of 18.9 MB, one after another: from memory, not from the caches.
    let size = 3072;
    let layers: Vec<Layer> = (0..28).map(|_| Layer::new(size)).collect();
    let next = std::cell::Cell::new(0);
    let layer = measure(&mut runners, 12, 14, &|run| {
        let layer = &layers[next.replace((next.get() + 1) % layers.len())];
        run(TASKS, &|task| layer.task(task));
    });
    layers.iter().for_each(Layer::check);
    let floor = 2.0 * (size * size) as f64 / bandwidth / 1e9;

    // A token: 200 regions of 1 MB, about 20 us of two threads each.
    let small: Vec<Layer> = (0..8).map(|_| Layer::new(704)).collect();
    let token = |run: &mut Run| {
        for i in 0..200 {
            run(TASKS, &|task| small[i % small.len()].task(task));
        }
    };
    let alone = measure(&mut runners, 10, 12, &token);
    let busy = {
        let _neighbour = Neighbour::start();
        measure(&mut runners, 10, 12, &token)
    };
    small.iter().for_each(Layer::check);

    println!("floor of the layer: {:.0} us", floor * 1e6);
    println!(
        "{:>12} {:>12} {:>12} {:>10} {:>12} {:>12}",
        "pool", "empty, us", "layer, us", "of floor", "tokens/s", "busy core"
    );
    for (i, (name, _)) in runners.iter().enumerate() {
        println!(
            "{name:>12} {:>12.2} {:>12.0} {:>10.2} {:>12.0} {:>12.0}",
            empty[i] * 1e6,
            layer[i] * 1e6,
            layer[i] / floor,
            1.0 / alone[i],
            1.0 / busy[i]
        );
    }
}
