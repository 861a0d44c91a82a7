//! `experiment_results/<timestamp>/`: a copy of `experiments.csv` and `results.csv`, which grows by one line per row. A line is
//! on the disk before the next row begins, so that whatever ends the process costs the running row and no other.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};

use crate::output::write_whole;

const SHEET: &str = "experiments.csv";
const RESULTS: &str = "results.csv";

/// The results of one run over a sheet.
pub struct Results {
    dir: PathBuf,
    /// Locked while this process appends to it.
    file: File,
    header: Vec<String>,
    records: Vec<Vec<String>>,
}

impl Results {
    /// Begins a new directory under `root`.
    pub fn create(root: &Path, sheet: &[u8], header: Vec<String>) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| root.display().to_string())?;
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "-");
        let names = std::iter::once(now.clone()).chain((2..).map(|n| format!("{now}-{n}")));
        for dir in names.map(|name| root.join(name)) {
            match fs::create_dir(&dir) {
                Ok(()) => {
                    write_whole(&dir.join(SHEET), sheet)?;
                    return Self::open(dir, header);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| dir.display().to_string()),
            }
        }
        unreachable!("names do not end")
    }

    /// The newest directory under `root` that was begun for this very sheet and has not all of its `rows`.
    pub fn find_unfinished(root: &Path, sheet: &[u8], header: &[String], rows: usize) -> anyhow::Result<Option<Self>> {
        let Ok(entries) = fs::read_dir(root) else { return Ok(None) };
        let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        dirs.sort();
        let same = |dir: &PathBuf| fs::read(dir.join(SHEET)).is_ok_and(|copy| copy == sheet);
        let Some(dir) = dirs.into_iter().rev().find(same) else { return Ok(None) };
        let results = Self::open(dir, header.to_vec())?;
        Ok(Some(results).filter(|results| results.finished().len() < rows))
    }

    /// Goes on with a directory: a last line that was not written whole is taken off.
    fn open(dir: PathBuf, header: Vec<String>) -> anyhow::Result<Self> {
        let path = dir.join(RESULTS);
        let context = || path.display().to_string();
        let file = OpenOptions::new().append(true).create(true).open(&path).with_context(context)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{}: another process is running these experiments", dir.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        }
        let bytes = fs::read(&path).with_context(context)?;
        // Cells hold no line breaks, so a line is a record.
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
        file.set_len(whole as u64).with_context(context)?;
        let mut results = Results { dir, file, header, records: Vec::new() };
        if whole == 0 {
            results.write(&results.header.clone())?;
            return Ok(results);
        }
        let mut reader = csv::Reader::from_reader(&bytes[..whole]);
        if reader.headers().with_context(context)? != results.header {
            bail!("{}: has other columns than this version writes: pass --new to begin anew", path.display());
        }
        for record in reader.records() {
            results.records.push(record.with_context(context)?.iter().map(str::to_owned).collect());
        }
        Ok(results)
    }

    /// Appends a row's record, which is on the disk when this returns. Line breaks become blanks.
    pub fn append(&mut self, record: Vec<String>) -> anyhow::Result<()> {
        let record: Vec<String> = record.iter().map(|cell| cell.replace(['\n', '\r'], " ")).collect();
        self.write(&record)?;
        self.records.push(record);
        Ok(())
    }

    fn write(&mut self, record: &[String]) -> anyhow::Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(record)?;
        let line = writer.into_inner().context("a line of results")?;
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.with_context(|| self.dir.join(RESULTS).display().to_string())
    }

    /// Numbers, from 1, of the rows that have a record: it begins with them.
    pub fn finished(&self) -> BTreeSet<usize> {
        self.records.iter().filter_map(|record| record.first()?.parse().ok()).collect()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn header(&self) -> &[String] {
        &self.header
    }

    pub fn records(&self) -> &[Vec<String>] {
        &self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|&cell| cell.to_owned()).collect()
    }

    #[test]
    fn a_torn_line_is_dropped_and_the_rest_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let header = cells(&["row", "error"]);
        let mut results = Results::create(root.path(), b"sheet", header.clone()).unwrap();
        let dir = results.dir().to_owned();
        results.append(cells(&["1", "two\nlines, and a comma"])).unwrap();
        results.append(cells(&["2", ""])).unwrap();
        drop(results);
        let whole = fs::read(dir.join(RESULTS)).unwrap();
        for torn in [&b"3"[..], b"3,\"half", b"3,whole but for its end"] {
            fs::write(dir.join(RESULTS), [&whole[..], torn].concat()).unwrap();
            let results = Results::find_unfinished(root.path(), b"sheet", &header, 3).unwrap().unwrap();
            assert_eq!(results.records(), [cells(&["1", "two lines, and a comma"]), cells(&["2", ""])]);
            drop(results);
            assert_eq!(fs::read(dir.join(RESULTS)).unwrap(), whole);
        }
    }

    #[test]
    fn only_the_newest_unfinished_run_of_the_same_sheet_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let header = cells(&["row"]);
        let find = |sheet: &[u8], rows| Results::find_unfinished(root.path(), sheet, &header, rows).unwrap();
        assert!(find(b"sheet", 1).is_none());
        let mut results = Results::create(root.path(), b"sheet", header.clone()).unwrap();
        results.append(cells(&["1"])).unwrap();
        let locked = Results::find_unfinished(root.path(), b"sheet", &header, 2).err().unwrap();
        assert!(locked.to_string().contains("another process"), "{locked}");
        let first = results.dir().to_owned();
        drop(results);
        assert!(find(b"sheet", 1).is_none() && find(b"other", 2).is_none());
        assert_eq!(find(b"sheet", 2).unwrap().dir(), first);
        let second = Results::create(root.path(), b"sheet", header.clone()).unwrap().dir().to_owned();
        assert_ne!(first, second);
        assert_eq!(find(b"sheet", 1).unwrap().dir(), second);
        let other = Results::find_unfinished(root.path(), b"sheet", &cells(&["row", "new"]), 2).err().unwrap();
        assert!(other.to_string().contains("--new"), "{other}");
    }
}
