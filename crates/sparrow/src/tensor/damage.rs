//! What interrupted and misdirected downloads leave in place of a file: told by name, whatever reads the file.

use std::fs::Metadata;
use std::path::Path;

use crate::error::{Error, Result};

/// How a file that is something else begins, what it is, and the mend.
const DISGUISES: [(&[u8], &str); 6] = [
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, not the file itself: run `git lfs pull` in the clone, or download the file",
    ),
    (b"<!doctype html", WEB_PAGE),
    (b"<html", WEB_PAGE),
    (b"<?xml", "is an XML document, such as a server's error message: download the file again"),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
];
const WEB_PAGE: &str = "is a web page, not the file itself: download the file again from the link that says `resolve` or \
                        `raw` (a login may be needed)";
const UTF_16: &str = "is UTF-16 text: save it as UTF-8";

/// What the system says of the file at `path`, behind its links.
///
/// # Errors
/// If there is none; a link that leads nowhere is told apart.
pub fn metadata(path: &Path) -> Result<Metadata> {
    let error = match std::fs::metadata(path) {
        Ok(metadata) => return Ok(metadata),
        Err(error) => error,
    };
    match std::fs::read_link(path) {
        Ok(target) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = format!(
                "is a link to {}, which is not there: download the model again, or copy it with what its links lead to \
                 (cp -rL)",
                target.display()
            );
            Err(Error::Damaged { path: path.to_owned(), message })
        }
        _ => Err(Error::io(path)(error)),
    }
}

/// Refuses the content of a file that is empty, or is known to be something else than any file of a model.
///
/// # Errors
/// Says what it is, and what to do.
pub fn check(path: &Path, content: &[u8]) -> Result<()> {
    let text = content.trim_ascii_start();
    let is = |(start, _): &&(&[u8], &str)| text.get(..start.len()).is_some_and(|t| t.eq_ignore_ascii_case(start));
    let message = match DISGUISES.iter().find(is) {
        Some((_, message)) => (*message).to_owned(),
        None if content.is_empty() => "is empty: download it again".to_owned(),
        None => return Ok(()),
    };
    Err(Error::Damaged { path: path.to_owned(), message })
}

/// How a text begins, in quotes, for a message; none if it is no text.
pub fn beginning(content: &[u8]) -> Option<String> {
    const SHOWN: usize = 40;
    let first: Vec<char> = content.utf8_chunks().next()?.valid().chars().take(SHOWN).collect();
    let readable = first.iter().all(|c| !c.is_control() || c.is_ascii_whitespace());
    (readable && first.len() == SHOWN.min(content.len())).then(|| format!("{:?}", first.iter().collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_something_else_is_named() {
        let says = |content: &[u8]| check("f".as_ref(), content).unwrap_err().to_string();
        assert!(says(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n").contains("git lfs pull"));
        assert!(says(b"\n <!DOCTYPE HTML>\n<title>403</title>").contains("web page"));
        assert!(says(b"<HTML><head>").contains("web page"));
        assert!(says(b"").contains("empty"));
        assert!(says(b"\xff\xfe{\0").contains("UTF-16"));
        for fine in [&b"{}"[..], b"\x08\0\0\0\0\0\0\0{}      ", b"version 1", b"<"] {
            check("f".as_ref(), fine).unwrap();
        }
    }

    #[test]
    fn only_texts_are_shown() {
        assert_eq!(beginning(b"Entry not found").unwrap(), "\"Entry not found\"");
        assert_eq!(beginning("é".repeat(90).as_bytes()).unwrap(), format!("{:?}", "é".repeat(40)));
        assert_eq!(beginning(b"\x08\0\0\0\0\0\0\0{}"), None);
        assert_eq!(beginning(b"{\xff"), None);
    }
}
