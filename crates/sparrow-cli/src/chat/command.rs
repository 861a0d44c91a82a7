//! Lines that are commands, not messages.

use std::path::PathBuf;

/// What can be asked for in a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Help,
    Reset,
    Save(PathBuf),
    Dense,
    Sparse,
    Exit,
}

/// What a line that begins with a slash means.
pub const HELP: &str = "\
/reset       forget the conversation and begin anew
/save FILE   write the conversation to FILE as JSON
/dense       compute everything from here on
/sparse      compute what the selector keeps from here on
/help        show this
/exit        leave, as Ctrl-D does
Ctrl-C stops an answer. A line that begins with a space and a slash is a message.";

impl Command {
    /// The command on a line; none for a message.
    ///
    /// # Errors
    /// Says what is wrong with a line that begins as a command.
    pub fn parse(line: &str) -> Result<Option<Command>, String> {
        if !line.starts_with('/') {
            return Ok(None);
        }
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let command = match name {
            "/help" => Command::Help,
            "/reset" => Command::Reset,
            "/dense" => Command::Dense,
            "/sparse" => Command::Sparse,
            "/exit" => Command::Exit,
            "/save" if argument.is_empty() => return Err("/save needs the name of a file".to_owned()),
            "/save" => return Ok(Some(Command::Save(argument.into()))),
            _ => {
                let message =
                    "there is no command {name}: /help lists them, and a space before the slash makes it a message";
                return Err(message.replace("{name}", name));
            }
        };
        match argument {
            "" => Ok(Some(command)),
            _ => Err(format!("{name} takes nothing after it, found {argument:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_messages() {
        let parse = |line| Command::parse(line);
        assert_eq!(parse("hello"), Ok(None));
        assert_eq!(parse(" /reset"), Ok(None));
        assert_eq!(parse("/reset "), Ok(Some(Command::Reset)));
        assert_eq!(parse("/save  my talk.json "), Ok(Some(Command::Save("my talk.json".into()))));
        for (line, says) in [
            ("/save", "name of a file"),
            ("/rest", "no command /rest"),
            ("/etc/x y", "/etc/x"),
            ("/exit now", "\"now\""),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
        for name in ["/help", "/reset", "/dense", "/sparse", "/exit"] {
            assert!(matches!(parse(name), Ok(Some(_))) && HELP.contains(name), "{name}");
        }
    }
}
