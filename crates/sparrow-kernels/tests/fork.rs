//! A forked child has the memory of its parent, but only one thread. In a process of its own: other tests' threads may
//! hold locks of the standard library when this one forks.
#![cfg(unix)]

use sparrow_kernels::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A child that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `child` returns in a forked process; `None` if it hangs.
fn in_child(child: impl FnOnce() -> bool) -> Option<bool> {
    // SAFETY: the child uses what glibc and the standard library keep usable after a fork, and ends without returning.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // Children print nothing: the lock of the standard error may be held.
        std::panic::set_hook(Box::new(|_| {}));
        let good = catch_unwind(AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!good)) }
    }
    let start = Instant::now();
    let mut status = 0;
    // SAFETY: the child is ours, and `status` is writable.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
        if start.elapsed() > PATIENCE {
            // SAFETY: as above; the child is killed and taken away.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, &raw mut status, 0);
            }
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0)
}

/// The sum of the numbers of `tasks` tasks on a pool.
fn sum(pool: &Pool, tasks: usize) -> usize {
    let sum = AtomicUsize::new(0);
    pool.run(tasks, &|task| {
        sum.fetch_add(task, Relaxed);
    });
    sum.into_inner()
}

/// Whether `f` panics with a message that names the fork.
fn names_the_fork(f: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(()) => false,
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
            text.is_some_and(|text| text.contains("forked after this thread pool was made"))
        }
    }
}

/// Keeps the tests apart: where another thread is about to start threads during a fork, locks of the C library may stay held in the child,
/// and nothing can be started there.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A layer large enough for the pool.
fn layer(compute: &Compute) -> Vec<f32> {
    let (n, k) = (300, 200);
    let mut bytes = vec![0; n * DType::BF16.row_bytes(k)];
    let weights: Vec<f32> = (0..n * k).map(|i| (i % 13) as f32 - 6.0).collect();
    bytes.chunks_exact_mut(2 * k).zip(weights.chunks_exact(k)).for_each(|(to, w)| encode(DType::BF16, w, to));
    let weights = Matrix::new(DType::BF16, n, k, &bytes);
    let mut out = vec![0.0; n];
    compute.linear_in_out(
        &vec![0.5; n],
        1,
        None,
        &mut [LinearPart { weights: weights.into(), bias: None, out: &mut out[..k] }],
    );
    compute.linear(&vec![0.5; k], 1, &mut [LinearPart { weights: weights.into(), bias: None, out: &mut out }]);
    out
}

/// Runs `f` while two threads keep the pool busy.
fn while_busy(compute: &Compute, f: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    layer(compute);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(20));
        let result = catch_unwind(AssertUnwindSafe(f));
        stop.store(true, Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn a_child_is_told_and_can_start_anew() {
    let _alone = alone();
    let mut compute = Compute::new(Some(3));
    let want = layer(&compute);
    while_busy(&compute, || {
        for round in 0..40 {
            let refused = in_child(|| compute.is_forked() && names_the_fork(|| _ = sum(compute.pool(), 5)));
            assert_eq!(refused, Some(true), "run in child {round}");
            let operation = in_child(|| names_the_fork(|| drop(layer(&compute))));
            assert_eq!(operation, Some(true), "an operation in child {round}");
            let anew = in_child(|| {
                let new = Compute::new(Some(3));
                !new.is_forked() && sum(new.pool(), 100) == 4950 && layer(&new) == want
            });
            assert_eq!(anew, Some(true), "a new pool in child {round}");
        }
    });
    // Nobody else uses it now: in the child it can be dropped.
    for round in 0..40 {
        let dropped = in_child(|| {
            drop(std::mem::replace(&mut compute, Compute::new(Some(2))));
            layer(&compute) == want
        });
        assert_eq!(dropped, Some(true), "dropping in child {round}");
    }
    assert!(!compute.is_forked());
    assert_eq!(layer(&compute), want, "the parent goes on");
}

#[test]
fn dropping_a_busy_pool_in_a_child_does_not_hang() {
    let _alone = alone();
    for round in 0..40 {
        let compute = Compute::new(Some(3));
        while_busy(&compute, || {
            let dropped = in_child(|| {
                // SAFETY: in the child nobody else uses it, and it is not used again.
                drop(unsafe { std::ptr::read(&raw const compute) });
                true
            });
            assert_eq!(dropped, Some(true), "child {round}");
        });
    }
}

#[test]
fn what_needs_no_worker_goes_on() {
    let _alone = alone();
    let alone = Compute::new(Some(1));
    let want = layer(&alone);
    let several = Compute::new(Some(3));
    let same = in_child(|| alone.is_forked() && layer(&alone) == want && sum(several.pool(), 1) == 0);
    assert_eq!(same, Some(true));
    // The thread that forks is within a task: nested regions are its own.
    let good = AtomicUsize::new(0);
    several.pool().run(2, &|_| {
        if in_child(|| sum(several.pool(), 5) == 10) == Some(true) {
            good.fetch_add(1, Relaxed);
        }
    });
    assert_eq!(good.into_inner(), 2);
}
