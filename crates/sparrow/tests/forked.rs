//! A session in a forked child says so instead of hanging, also while its parent is at work. In a process of its own: other tests'
//! threads may hold locks when this one forks.
#![cfg(unix)]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sparrow::{Error, KvOptions, Load, Loaded, SessionOptions};
use sparrow_testing::demo_dir;

/// A child that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn open() -> Loaded {
    Load::new(demo_dir()).threads(2).open(|_, _, _| ()).unwrap()
}

fn options() -> SessionOptions {
    SessionOptions { sequences: 1, capacity: 256, kv: KvOptions::default() }
}

/// What a forked child that runs `child` ends with; none if it hangs.
fn in_child(child: impl FnOnce() -> bool) -> Option<bool> {
    // SAFETY: the child uses what the system's libraries keep usable after a fork, and ends without returning.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!good)) }
    }
    let (start, mut status) = (Instant::now(), 0);
    // SAFETY: the child is ours, and `status` is writable.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
        if start.elapsed() > PATIENCE {
            // SAFETY: the child is ours.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0)
}

#[test]
fn forked_sessions_say_so() {
    let loaded = open();
    let mut session = loaded.session(options()).unwrap();
    session.prefill(0, &[1, 2, 3]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut busy = loaded.session(options()).unwrap();
            while !stop.load(Relaxed) {
                busy.truncate(0, 0).unwrap();
                busy.prefill(0, &[5; 200]).unwrap();
            }
        });
        let ends: Vec<Option<bool>> = (0..40)
            .map(|_| {
                in_child(|| {
                    let says_so = matches!(session.decode(&[(0, 4)]), Err(Error::Forked));
                    says_so && matches!(session.prefill(0, &[4, 5]), Err(Error::Forked))
                })
            })
            .collect();
        stop.store(true, Relaxed);
        assert_eq!(ends, vec![Some(true); 40]);
    });
    // The parent goes on.
    session.decode(&[(0, 4)]).unwrap();
    // A model that is loaded after the fork runs.
    let runs = in_child(|| open().session(options()).is_ok_and(|mut session| session.prefill(0, &[1, 2, 3]).is_ok()));
    assert_eq!(runs, Some(true));
}
