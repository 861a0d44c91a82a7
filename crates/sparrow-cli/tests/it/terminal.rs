//! What a terminal shows: colours unless `NO_COLOR` is set, and bars for long work only.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::command::{PROMPT, sparrow, stderr, stdout, text};

/// A terminal: what is read from it, and what a command writes to.
fn terminal() -> (File, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (master.into(), slave)
}

fn on_terminal(args: &[&str]) -> Command {
    let mut command = sparrow(args);
    command.env("TERM", "xterm-256color").env_remove("NO_COLOR").env_remove("CLICOLOR").env_remove("CLICOLOR_FORCE");
    command
}

/// All that a command shows on a terminal.
fn shown(command: &mut Command) -> String {
    let (mut reader, terminal) = terminal();
    let mut child = command.stdout(terminal.try_clone().unwrap()).stderr(terminal).spawn().unwrap();
    // The command keeps this process's copies of the terminal until it is dropped.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut seen = Vec::new();
    // A terminal whose other end is closed ends with an error.
    let _ = reader.read_to_end(&mut seen);
    child.wait().unwrap();
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn colours_are_left_out_on_request() {
    for args in [&["--help"][..], &["eval", "--help"], &["eval", "--nonsense"]] {
        assert!(shown(&mut on_terminal(args)).contains("\x1b["), "{args:?}");
        let plain = shown(on_terminal(args).env("NO_COLOR", "1"));
        assert!(plain.contains("--help") && !plain.contains('\x1b'), "{args:?}: {plain:?}");
    }
}

#[test]
fn short_work_shows_no_bar() {
    let seen = shown(&mut on_terminal(&["eval", "--max-tokens", "64"]));
    assert!(seen.contains("perplexity") && !seen.contains('\x1b'), "{seen:?}");
}

#[test]
fn long_work_shows_a_bar_without_colours() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long.txt");
    std::fs::write(&long, std::fs::read_to_string(text()).unwrap().repeat(200)).unwrap();
    let (mut reader, terminal) = terminal();
    let mut command = on_terminal(&["eval", "--text", long.to_str().unwrap()]);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(terminal).spawn().unwrap();
    drop(command);
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let has_bar = loop {
        if String::from_utf8_lossy(&seen).contains("left") {
            break true;
        }
        match reader.read(&mut buffer) {
            Ok(n) if n > 0 => seen.extend_from_slice(&buffer[..n]),
            _ => break false,
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let seen = String::from_utf8_lossy(&seen);
    assert!(has_bar && seen.contains("evaluating"), "{seen:?}");
    assert!(!seen.contains("\x1b[3") && !seen.contains("\x1b[0m"), "{seen:?}");
}

#[test]
fn quiet_leaves_results_and_errors() {
    let generate = ["generate", "--prompt", PROMPT, "-n", "8"];
    let [loud, quiet] =
        [&[][..], &["--quiet"]].map(|option| sparrow(&[&generate[..], option].concat()).output().unwrap());
    assert!(stderr(&loud).contains("tok/s"));
    assert_eq!((stdout(&quiet), stderr(&quiet)), (stdout(&loud), String::new()));
    let dir = tempfile::tempdir().unwrap();
    let sheet = dir.path().join("sheet.csv");
    let generate = ["-q", "experiments", "generate", "-o", sheet.to_str().unwrap()];
    let output = sparrow(&generate).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    let again = sparrow(&generate).output().unwrap();
    assert!(!again.status.success() && stderr(&again).contains("--force"), "{}", stderr(&again));
}
