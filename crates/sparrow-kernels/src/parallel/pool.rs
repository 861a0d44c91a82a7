//! A small thread pool: one parallel region at a time, tasks claimed one by one.
//!
//! Starting a region costs one atomic store while the workers are awake, and one wake-up more once they have parked. A
//! worker that wakes late simply finds nothing left: the caller takes part and never waits for a sleeper. Nothing is
//! allocated per region.

use super::fork::Generation;
use super::start::start_thread;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker without work, or a caller whose last tasks run elsewhere, spins before it parks.
const SPIN: Duration = Duration::from_micros(30);

/// How long such a worker keeps the core to itself.
const SPIN_ALONE: Duration = Duration::from_micros(3);

thread_local! {
    /// The pool whose task this thread is running, for nested regions.
    static RUNNING: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// A fixed set of threads that run parallel regions together with the thread that asks for them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the length of a region: concurrent regions take turns.
    region: Mutex<()>,
    /// The process that has the workers.
    made_in: Generation,
}

/// The closure of the current region, its lifetime erased.
type Task = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Upper half: the number of the region. Lower half: tasks nobody has claimed yet.
    ticket: AtomicU64,
    /// The closure and the number of tasks; written only between regions.
    job: UnsafeCell<(Option<Task>, usize)>,
    /// Tasks finished in this region.
    done: AtomicUsize,
    caller_parked: AtomicBool,
    parked: AtomicUsize,
    shutdown: AtomicBool,
    lock: Mutex<()>,
    wake_workers: Condvar,
    wake_caller: Condvar,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the caller only while no task is claimed or claimable, and read only after a claim, which
// the atomic `ticket` orders; the closure behind it is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller of [`run`](Self::run) among them; at least one, and fewer where the system refuses to
    /// start so many.
    pub fn new(threads: usize) -> Self {
        let made_in = Generation::now();
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            job: UnsafeCell::new((None, 0)),
            done: AtomicUsize::new(0),
            caller_parked: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            shutdown: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake_workers: Condvar::new(),
            wake_caller: Condvar::new(),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let start = |i| {
            let shared = Arc::clone(&shared);
            start_thread(format!("sparrow-{i}"), move || shared.work()).ok()
        };
        let workers = (1..threads.max(1)).map_while(start).collect();
        Self { shared, workers, region: Mutex::new(()), made_in }
    }

    /// Threads that take part in a region, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Whether the process was forked after the pool was made: its threads are then not in the child, where
    /// [`run`](Self::run) panics.
    pub fn is_forked(&self) -> bool {
        self.made_in.is_past()
    }

    /// Calls `f(task)` once for each `task` in `0..tasks`, on the workers and this thread, and returns when all are
    /// done.
    ///
    /// A call from inside a task of the same pool runs its tasks one after another on that thread; calls from several
    /// threads take turns.
    ///
    /// # Panics
    /// With the panic of a task, after every task that had started has stopped; tasks not started by then are dropped.
    /// Also if `tasks` is 2³² or more, or if the pool [is forked](Self::is_forked) and the tasks are more than this
    /// thread would run alone anyway.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        if tasks <= 1 || self.workers.is_empty() || RUNNING.get() == std::ptr::from_ref(shared) {
            (0..tasks).for_each(f);
            return;
        }
        // Before any lock: in the child it may be that of a thread that is not there.
        assert!(
            !self.is_forked(),
            "the process was forked after this thread pool was made: its threads are not in the child; make a new Compute \
             (or load the model) in the child"
        );
        let remaining = u32::try_from(tasks).expect("Pool::run: 2^32 tasks or more");
        let region = ignore_poison(self.region.lock());
        // SAFETY: only the lifetime is erased; the closure is called only for claimed tasks, and this function returns
        // after all tasks are counted in `done`.
        let task: Task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Task>(f) };
        // SAFETY: no task is claimable (the last region has ended, and `region` is held), so nobody reads `job` now.
        unsafe { *shared.job.get() = (Some(task), tasks) };
        shared.done.store(0, Relaxed);
        let number = (shared.ticket.load(Relaxed) >> 32).wrapping_add(1);
        shared.ticket.store(number << 32 | u64::from(remaining), SeqCst);
        if shared.parked.load(SeqCst) > 0 {
            let _guard = ignore_poison(shared.lock.lock());
            if tasks > 2 {
                shared.wake_workers.notify_all();
            } else {
                shared.wake_workers.notify_one();
            }
        }
        shared.claim_all();
        shared.wait_done(tasks);
        let panic = if shared.panicked.load(Acquire) {
            shared.panicked.store(false, Relaxed);
            ignore_poison(shared.panic.lock()).take()
        } else {
            None
        };
        drop(region);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Calls `f` with the number of each chunk of `size` values (the last may be shorter) and the chunk, on all threads.
    ///
    /// # Panics
    /// If `size` is 0, or as [`run`](Self::run).
    pub fn for_chunks<T: Send>(&self, values: &mut [T], size: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let chunks = values.len().div_ceil(size);
        let next = Mutex::new(values.chunks_mut(size).enumerate());
        self.run(chunks, &|_| {
            let chunk = ignore_poison(next.lock()).next();
            let (i, chunk) = chunk.expect("a task for each chunk");
            f(i, chunk);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.is_forked() {
            // Nobody is there to be woken or waited for, and the lock may be held for ever. The handles of threads that
            // the child does not have are not even detached.
            self.workers.drain(..).for_each(std::mem::forget);
            return;
        }
        self.shared.shutdown.store(true, SeqCst);
        {
            let _guard = ignore_poison(self.shared.lock.lock());
            self.shared.wake_workers.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn work(&self) {
        let mut idle_since = Instant::now();
        while !self.shutdown.load(Relaxed) {
            if self.claimable() {
                self.claim_all();
                idle_since = Instant::now();
            } else if idle_since.elapsed() < SPIN {
                for _ in 0..16 {
                    std::hint::spin_loop();
                }
                // Another process that waits for this core gets it; on a free core this costs little.
                if idle_since.elapsed() > SPIN_ALONE {
                    std::thread::yield_now();
                }
            } else {
                let mut guard = ignore_poison(self.lock.lock());
                self.parked.fetch_add(1, SeqCst);
                while !self.claimable() && !self.shutdown.load(SeqCst) {
                    guard = ignore_poison(self.wake_workers.wait(guard));
                }
                self.parked.fetch_sub(1, SeqCst);
                drop(guard);
                idle_since = Instant::now();
            }
        }
    }

    fn claimable(&self) -> bool {
        self.ticket.load(SeqCst) as u32 > 0
    }

    /// Claims and runs tasks until none is left.
    fn claim_all(&self) {
        let before = RUNNING.replace(self);
        let mut ticket = self.ticket.load(Acquire);
        while ticket as u32 > 0 {
            match self.ticket.compare_exchange_weak(ticket, ticket - 1, AcqRel, Acquire) {
                Ok(_) => {
                    self.run_claimed(ticket as u32 as usize);
                    ticket = self.ticket.load(Acquire);
                }
                Err(now) => ticket = now,
            }
        }
        RUNNING.set(before);
    }

    /// Runs the task that was claimed when `remaining` were left.
    fn run_claimed(&self, remaining: usize) {
        // SAFETY: the claimed task is not counted in `done` yet, so the region is live: `job` is not written and the
        // closure still exists.
        let (task, tasks) = unsafe { *self.job.get() };
        if !self.panicked.load(Relaxed) {
            let result = catch_unwind(AssertUnwindSafe(|| {
                let task = task.expect("a live region has a task");
                // SAFETY: as above, the closure outlives this call.
                unsafe { (*task)(tasks - remaining) }
            }));
            if let Err(payload) = result {
                ignore_poison(self.panic.lock()).get_or_insert(payload);
                self.panicked.store(true, Release);
            }
        }
        if self.done.fetch_add(1, SeqCst) + 1 == tasks && self.caller_parked.load(SeqCst) {
            let _guard = ignore_poison(self.lock.lock());
            self.wake_caller.notify_all();
        }
    }

    /// Returns when all tasks of the region are done.
    fn wait_done(&self, tasks: usize) {
        if self.done.load(Acquire) == tasks {
            return;
        }
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..16 {
                if self.done.load(Acquire) == tasks {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let mut guard = ignore_poison(self.lock.lock());
        self.caller_parked.store(true, SeqCst);
        while self.done.load(SeqCst) != tasks {
            guard = ignore_poison(self.wake_caller.wait(guard));
        }
        self.caller_parked.store(false, SeqCst);
    }
}

/// No lock of the pool guards data that a panic could leave half written.
fn ignore_poison<'a, T>(result: Result<MutexGuard<'a, T>, PoisonError<MutexGuard<'a, T>>>) -> MutexGuard<'a, T> {
    result.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 17, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_small_regions_lose_nothing() {
        let pool = Pool::new(4);
        let sum = AtomicUsize::new(0);
        for round in 0..20_000 {
            pool.run(1 + round % 5, &|i| {
                sum.fetch_add(i + 1, Relaxed);
            });
        }
        assert_eq!(sum.load(Relaxed), 4000 * (1 + 3 + 6 + 10 + 15));
    }

    #[test]
    fn parked_workers_wake() {
        let pool = Pool::new(3);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(2));
            let ids = Mutex::new(std::collections::HashSet::new());
            pool.run(3, &|_| {
                std::thread::sleep(Duration::from_millis(50));
                ids.lock().unwrap().insert(std::thread::current().id());
            });
            assert!(ids.into_inner().unwrap().len() > 1);
        }
    }

    #[test]
    fn nested_regions_run_inline() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(5, &|i| {
                sum.fetch_add(i, Relaxed);
            });
        });
        assert_eq!(sum.load(Relaxed), 40);
    }

    #[test]
    fn regions_from_several_threads_take_turns() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(7, &|i| {
                            sum.fetch_add(i, Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Relaxed), 4 * 500 * 21);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(9, &|i| assert!(i != 4, "task four"));
            }));
            let payload = result.expect_err("the panic must propagate");
            assert!(
                payload.downcast_ref::<String>().is_some_and(|s| s.contains("task four"))
                    || payload.downcast_ref::<&str>().is_some_and(|s| s.contains("task four"))
            );
            let sum = AtomicUsize::new(0);
            pool.run(4, &|i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 6);
        }
    }
}
