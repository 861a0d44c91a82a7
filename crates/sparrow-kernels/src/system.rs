//! What the system grants this process: CPUs and memory, less than the machine has where a container or a limit says so.

use std::fs;
use std::path::{Path, PathBuf};

/// CPUs' worth of time that control groups leave this process; none if they set no limit.
pub fn cpu_quota() -> Option<f64> {
    quota_in(Path::new("/"))
}

/// Threads that are worth starting: as many as this process may use CPUs, and no more than its quota pays for.
pub fn default_threads() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    cpu_quota().map_or(cpus, |quota| cpus.min((quota as usize).max(1)))
}

/// Bytes of memory that this process can take without swapping, as the machine, its control groups and its limit of address
/// space say; none where nothing says so.
pub fn available_memory() -> Option<u64> {
    memory_in(Path::new("/"))
}

/// A version of control groups: the files that say what a group may take and has taken.
struct Version {
    filesystem: &'static str,
    /// Limit and use of memory; of the use, `cached` less `shared` comes back when it is needed.
    memory: [&'static str; 2],
    cached: &'static str,
    shared: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version { filesystem: "cgroup2", memory: ["memory.max", "memory.current"], cached: "file", shared: "shmem" },
    Version {
        filesystem: "cgroup",
        memory: ["memory.limit_in_bytes", "memory.usage_in_bytes"],
        cached: "total_cache",
        shared: "total_shmem",
    },
];

fn quota_in(root: &Path) -> Option<f64> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<f64>().ok();
    let quota = |(_, dir): (&Version, PathBuf)| {
        let (quota, period) = match fs::read_to_string(dir.join("cpu.max")) {
            Ok(text) => {
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
            Err(_) => (number(dir.join("cpu.cfs_quota_us"))?, number(dir.join("cpu.cfs_period_us"))?),
        };
        // A quota of -1 is none.
        Some(quota / period).filter(|cpus: &f64| cpus.is_finite() && *cpus > 0.0)
    };
    groups(root, "cpu").into_iter().filter_map(quota).reduce(f64::min)
}

fn memory_in(root: &Path) -> Option<u64> {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let machine = read(root.join("proc/meminfo")).and_then(|text| field(&text, "MemAvailable:")).map(|kb| kb * 1024);
    let left = |(version, dir): (&Version, PathBuf)| {
        let [limit, used] = version.memory.map(|name| read(dir.join(name))?.trim().parse::<u64>().ok());
        let stat = read(dir.join("memory.stat")).unwrap_or_default();
        let [cached, shared] = [version.cached, version.shared].map(|name| field(&stat, name).unwrap_or(0));
        Some(limit?.saturating_sub(used?.saturating_sub(cached.saturating_sub(shared))))
    };
    let of_groups = groups(root, "memory").into_iter().filter_map(left).min();
    let limit = read(root.join("proc/self/limits")).and_then(|text| field(&text, "Max address space"));
    let mapped = read(root.join("proc/self/status")).and_then(|text| field(&text, "VmSize:"));
    let addresses = limit.zip(mapped).map(|(limit, kb)| limit.saturating_sub(kb * 1024));
    [machine, of_groups, addresses].into_iter().flatten().min()
}

/// The first number of the line that begins with `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| {
        line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '\t']))?.split_whitespace().next()?.parse().ok()
    };
    text.lines().find_map(of_line)
}

/// The directories of the control groups that limit `controller` for this process: its own, and those it lies in.
fn groups(root: &Path, controller: &str) -> Vec<(&'static Version, PathBuf)> {
    let [own, mounts] =
        ["proc/self/cgroup", "proc/self/mountinfo"].map(|file| fs::read_to_string(root.join(file)).unwrap_or_default());
    let mut found = Vec::new();
    for mount in mounts.lines() {
        // … ROOT POINT … - FILESYSTEM SOURCE OPTIONS
        let Some((left, right)) = mount.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
        let (Some(within), Some(point), Some(filesystem)) = (left.next(), left.next(), right.next()) else { continue };
        let Some(version) = VERSIONS.iter().find(|version| version.filesystem == filesystem) else { continue };
        let controls = |list: &str| list.split(',').any(|name| name == controller);
        let unified = filesystem == "cgroup2";
        if !unified && !right.nth(1).is_some_and(controls) {
            continue;
        }
        // NUMBER:CONTROLLERS:PATH, without controllers in version 2.
        let path = own.lines().find_map(|line| {
            let (_, line) = line.split_once(':')?;
            let (controllers, path) = line.split_once(':')?;
            (if unified { controllers.is_empty() } else { controls(controllers) }).then_some(path)
        });
        // In a container the mount may show a part of the tree only, or the path lead out of it.
        let below = path.and_then(|path| Path::new(path).strip_prefix(within).ok()).unwrap_or(Path::new(""));
        let below = if below.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
            below
        } else {
            Path::new("")
        };
        let point = root.join(point.trim_start_matches('/'));
        found.extend(below.ancestors().map(|group| (version, point.join(group))));
    }
    found
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const V1: &str = "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    const V2: &str = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// Files below a made-up root.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn quotas_count_in_every_group_up_to_the_root() {
        let nested = [
            ("proc/self/cgroup", "0::/a/b/c\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/b/c/cpu.max", "400000 100000\n"),
        ];
        assert_eq!(quota_in(root(&nested).path()), Some(1.5));
        let old = [
            ("proc/self/cgroup", "4:memory:/other\n3:cpu,cpuacct:/docker/x\n0::/\n"),
            ("proc/self/mountinfo", V1),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/other/cpu.cfs_quota_us", "1\n"),
        ];
        assert_eq!(quota_in(root(&old).path()), Some(0.5));
    }

    #[test]
    fn a_container_that_sees_its_own_group_only() {
        // The mount shows the group as its root; the path is the machine's.
        let part = V1.replace("0:26 / ", "0:26 /docker/x ");
        let files = [
            ("proc/self/cgroup", "3:cpu,cpuacct:/docker/x\n"),
            ("proc/self/mountinfo", part.as_str()),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota_in(root(&files).path()), Some(2.0));
        let outside = [
            ("proc/self/cgroup", "0::/../../elsewhere\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/cpu.max", "300000 100000\n"),
        ];
        assert_eq!(quota_in(root(&outside).path()), Some(3.0));
    }

    #[test]
    fn no_limit_is_none() {
        for files in [
            &[][..],
            &[("proc/self/cgroup", "0::/a\n")],
            &[
                ("proc/self/cgroup", "0::/a\n"),
                ("proc/self/mountinfo", V2),
                ("sys/fs/cgroup/a/cpu.max", "max 100000\n"),
            ],
            &[("proc/self/cgroup", "x\n"), ("proc/self/mountinfo", "y - z\n"), ("sys/fs/cgroup/a/cpu.max", "")],
            &[("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", V2), ("sys/fs/cgroup/cpu.max", "1 0\n")],
        ] {
            assert_eq!(quota_in(root(files).path()), None, "{files:?}");
        }
        assert_eq!(memory_in(root(&[]).path()), None);
    }

    #[test]
    fn the_tightest_limit_of_memory_counts() {
        let mut files = vec![
            ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"),
            (
                "proc/self/limits",
                "Limit  Soft\nMax address space         unlimited            unlimited            bytes\n",
            ),
            ("proc/self/status", "VmPeak: 4 kB\nVmSize:\t    1000 kB\n"),
        ];
        assert_eq!(memory_in(root(&files).path()), Some(8000 * 1024));
        files[1].1 = "Max address space         2048000              unlimited            bytes\n";
        assert_eq!(memory_in(root(&files).path()), Some(2_048_000 - 1_024_000));
        files.extend([
            ("proc/self/cgroup", "4:memory:/x\n0::/y\n"),
            ("proc/self/mountinfo", V1),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "900000\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "700000\n"),
            ("sys/fs/cgroup/memory/x/memory.stat", "cache 1\ntotal_cache 400000\ntotal_shmem 100000\n"),
        ]);
        assert_eq!(memory_in(root(&files).path()), Some(500_000), "what is cached comes back");
        files.truncate(3);
        files.extend([
            ("proc/self/cgroup", "0::/y\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/y/memory.max", "100000\n"),
            ("sys/fs/cgroup/y/memory.current", "200000\n"),
        ]);
        assert_eq!(memory_in(root(&files).path()), Some(0));
    }
}
