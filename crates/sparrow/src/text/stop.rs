//! Texts that end generation.

/// Holds back text that may be the beginning of a stop string.
pub struct StopText {
    stop: Vec<String>,
    held: String,
}

impl StopText {
    /// With these stop strings; empty ones never stop anything.
    pub fn new(stop: Vec<String>) -> Self {
        StopText { stop, held: String::new() }
    }

    /// Text that is settled after `piece`, and the stop string that was completed, if one was.
    pub fn push(&mut self, piece: &str) -> (String, Option<String>) {
        self.held.push_str(piece);
        let found = |stop: &&String| self.held.find(stop.as_str()).map(|at| (at, (*stop).clone()));
        let first = self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| found(&s)).min_by_key(|f| f.0);
        if let Some((at, stop)) = first {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let suffixes = self.held.char_indices().map(|(i, _)| i);
        let open = suffixes.into_iter().find(|&i| self.stop.iter().any(|s| s.starts_with(&self.held[i..])));
        let rest = self.held.split_off(open.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// Whether a text that ends with `bytes`, and may be longer, can end with a stop string.
    pub(super) fn may_end_with(&self, bytes: &[u8]) -> bool {
        let fits = |stop: &String| {
            let common = stop.len().min(bytes.len());
            common > 0 && bytes.ends_with(&stop.as_bytes()[stop.len() - common..])
        };
        self.stop.iter().any(fits)
    }

    /// Whether `piece` would complete a stop string.
    pub(super) fn is_completed_by(&self, piece: &str) -> bool {
        let text = format!("{}{piece}", self.held);
        self.stop.iter().any(|stop| !stop.is_empty() && text.contains(stop))
    }

    /// What was held back and turned out to be text: no stop string was completed.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
        let mut text = StopText::new(stop);
        let mut out = String::new();
        for piece in pieces {
            let (settled, stopped) = text.push(piece);
            out.push_str(&settled);
            if stopped.is_some() {
                return (out, stopped);
            }
        }
        out.push_str(&text.rest());
        (out, None)
    }

    #[test]
    fn stop_strings_across_pieces() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), Some("END".into())));
        assert_eq!(run(&["END"], &["a E", "N", "d b"]), ("a ENd b".into(), None));
        assert_eq!(run(&["END"], &["a EEN", "D"]), ("a E".into(), Some("END".into())));
        assert_eq!(run(&["xy", "y"], &["ax", "y"]), ("a".into(), Some("xy".into())));
        assert_eq!(run(&["é!"], &["caf", "é", "s"]), ("cafés".into(), None));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), None));
        assert_eq!(run(&["END"], &["a EN"]), ("a EN".into(), None));
    }
}
