//! Facts about this machine that are no business of the kernels.

use std::fs;

/// The processor's name.
pub fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The largest resident memory this process has had, in bytes.
pub fn peak_resident_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// What this process has made the system read so far.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// From storage, through the page cache or past it.
    pub bytes: u64,
    /// Page faults that had to wait for storage.
    pub major_faults: u64,
}

impl Input {
    /// Until now; `None` where the system does not say.
    pub fn so_far() -> Option<Self> {
        let io = fs::read_to_string("/proc/self/io").ok()?;
        let bytes = io.lines().find_map(|l| l.strip_prefix("read_bytes: "))?.trim().parse().ok()?;
        // After the name, which may hold blanks, major faults are the tenth field.
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let major_faults = stat.rsplit_once(") ")?.1.split(' ').nth(9)?.parse().ok()?;
        Some(Input { bytes, major_faults })
    }
}

/// Has the system end this process when its parent ends, however that happens.
pub fn die_with_parent() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

/// Has the system, where memory runs out, end this process before others.
pub fn prefer_to_be_killed() {
    // Where there is no such file there is no such choice.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
}

fn kilobytes(file: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The mode of transparent huge pages: `always`, `madvise` or `never`.
pub fn huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// CPUs the machine has, whether this process may use them or not.
pub fn cpus() -> Option<usize> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    Some(info.lines().filter(|l| l.starts_with("processor")).count()).filter(|&n| n > 0)
}
