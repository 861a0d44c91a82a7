//! What holds for the definition of every command.

use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;

use crate::{Cli, manual};

/// Every command, with its words.
fn commands() -> Vec<(String, Command)> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut found = Vec::new();
    let mut open = vec![("sparrow".to_owned(), root)];
    while let Some((words, command)) = open.pop() {
        open.extend(command.get_subcommands().map(|c| (format!("{words} {}", c.get_name()), c.clone())));
        found.push((words, command));
    }
    assert!(found.len() > 12, "{} commands", found.len());
    found
}

/// Its options, in long form.
fn options(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(Arg::get_long)
}

#[test]
fn definitions_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn options_of_long_commands_are_under_headings() {
    for (words, command) in commands().iter().filter(|(_, command)| options(command).count() > 6) {
        let own = command.get_arguments().filter(|arg| !["help", "version", "quiet"].contains(&arg.get_id().as_str()));
        for arg in own {
            assert!(arg.get_help_heading().is_some(), "{words}: {} is under no heading", arg.get_id());
        }
    }
}

#[test]
fn headings_are_those_of_the_options() {
    for (words, option, heading) in [
        ("eval", "text", "Measurement"),
        ("eval", "model", "Model"),
        ("generate", "prompt", "Text"),
        ("generate", "top_k", "Sampling"),
        ("bench", "runs", "Measurement"),
        ("sparsify", "window", "Calibration"),
        ("prune", "exclude", "Sparsity"),
        ("prune", "window", "Calibration"),
    ] {
        let commands = commands();
        let (_, command) = commands.iter().find(|(all, _)| *all == format!("sparrow {words}")).unwrap();
        let arg = command.get_arguments().find(|arg| arg.get_id() == option).unwrap();
        assert_eq!(arg.get_help_heading(), Some(heading), "{words} --{option}");
    }
}

#[test]
fn short_help_is_short() {
    for (words, mut command) in commands() {
        let name = words.replace(' ', "-");
        let [short, long] = [command.render_help(), command.render_long_help()].map(|help| help.to_string());
        for line in short.lines().filter(|line| line.trim_start().starts_with('-')) {
            assert!(
                line.len() < 240,
                "{name}: put what follows the first sentence into a paragraph of its own: {line}"
            );
        }
        assert!(short.len() <= long.len(), "{name}");
    }
}

#[test]
fn completions_know_every_command_and_option() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
        let script = String::from_utf8(manual::completions(shell, Cli::command())).unwrap();
        for (words, command) in commands() {
            let name = command.get_name();
            assert!(script.contains(name), "{shell}: no {words}");
            for option in options(&command) {
                let spelled = if shell == Shell::Fish { format!("-l {option}") } else { format!("--{option}") };
                assert!(script.contains(&spelled), "{shell}: {words} has no {option}");
            }
        }
        assert!(!script.contains("bench-worker"), "{shell}");
    }
}

#[test]
fn the_manual_page_describes_every_command_and_option() {
    let page = String::from_utf8(manual::page(Cli::command()).unwrap()).unwrap().replace("\\-", "-");
    let sections: Vec<&str> = page.split("\n.SH ").collect();
    for (words, command) in commands().iter().filter(|(words, _)| words != "sparrow") {
        let title = format!("\"{}\"\n", words.to_uppercase());
        let section = sections.iter().find(|section| section.starts_with(&title));
        let section = section.unwrap_or_else(|| panic!("no section {title} in {page}"));
        for option in options(command) {
            assert!(
                section.contains(&format!("\n\\fB--{option}\\fR"))
                    || section.contains(&format!(", \\fB--{option}\\fR")),
                "{words} has no {option}: {section}"
            );
        }
    }
    assert!(!page.contains("bench-worker"));
}
