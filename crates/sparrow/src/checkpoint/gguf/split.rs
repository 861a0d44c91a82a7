//! Models in several files, `NAME-00001-of-00003.gguf` and so on.

use std::path::Path;

use super::file::{self, Tensors};
use super::value::Metadata;
use crate::error::Result;

/// Adds the tensors of the files that belong to the one at `path`, if it is the first of several.
pub(super) fn read_others(path: &Path, first: &Metadata, tensors: &mut Tensors) -> Result<()> {
    let count = first.usize("split.count", 0..=99_999)?.unwrap_or(1);
    if count <= 1 {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(prefix) = prefix(&name, count) else {
        let message =
            format!("is {count}, but the file's name does not end in -00001-of-{count:05}.gguf: rename the files");
        return Err(first.error("split.count", message));
    };
    let file = |number: usize| path.with_file_name(part(prefix, number, count));
    if first.usize("split.no", 0..=count)?.unwrap_or(0) != 0 {
        return Err(first.error("split.no", format!("is not 0: pass the first file, {}", file(1).display())));
    }
    for number in 2..=count {
        let path = file(number);
        if !path.is_file() {
            return Err(first.error("split.count", format!("is {count}, but {} is missing", path.display())));
        }
        let metadata = file::read(&path, tensors)?;
        let found = (metadata.usize("split.no", 0..=count)?, metadata.usize("split.count", 0..=99_999)?);
        if found != (Some(number - 1), Some(count)) {
            let message =
                format!("does not say that this is file {number} of {count}: the files are of several models");
            return Err(metadata.error("split.no", message));
        }
    }
    let expected = first.usize("split.tensors.count", 0..=1 << 24)?;
    match expected.filter(|&expected| expected != tensors.len()) {
        None => Ok(()),
        Some(expected) => {
            let message = format!("is {expected}, but the files have {} together", tensors.len());
            Err(first.error("split.tensors.count", message))
        }
    }
}

/// The names of the files that belong to the one called `name`, which is the first or the only one; folders before it stay.
pub(super) fn parts(name: &str) -> Vec<String> {
    let count =
        name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-")).and_then(|(_, count)| count.parse().ok());
    let prefix =
        count.filter(|count| (2..=99_999).contains(count)).and_then(|count| Some((prefix(name, count)?, count)));
    match prefix {
        Some((prefix, count)) => (1..=count).map(|number| part(prefix, number, count)).collect(),
        None => vec![name.to_owned()],
    }
}

/// The name of file `number`, from 1.
fn part(prefix: &str, number: usize, count: usize) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

/// What the name of one of `count` files begins with.
fn prefix(name: &str, count: usize) -> Option<&str> {
    let rest = name.strip_suffix(".gguf")?.strip_suffix(&format!("-of-{count:05}"))?;
    let (prefix, number) = rest.rsplit_once('-')?;
    (number.len() == 5 && number.bytes().all(|b| b.is_ascii_digit())).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_that_belong_together() {
        assert_eq!(parts("q4/big-00001-of-00002.gguf"), ["q4/big-00001-of-00002.gguf", "q4/big-00002-of-00002.gguf"]);
        for alone in ["tiny.gguf", "one-of-a-kind.gguf", "x-00001-of-00001.gguf", "x-1-of-00002.gguf"] {
            assert_eq!(parts(alone), [alone]);
        }
    }
}
