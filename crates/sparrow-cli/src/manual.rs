//! `sparrow completions` and `sparrow man`: made from the commands' own definitions, so that they cannot fall behind.

use std::io::Write;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Print a completion script for a shell.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell that reads it
    pub shell: Shell,
}

/// The script that completes `command` and its options in `shell`.
pub fn completions(shell: Shell, mut command: Command) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "sparrow", &mut script);
    script
}

/// One manual page of `command` and all its subcommands.
pub fn page(command: Command) -> std::io::Result<Vec<u8>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    subcommands(&command, &mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

/// A section for each subcommand, with subsections where a page of its own would have sections.
fn subcommands(command: &Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    for subcommand in command.get_subcommands() {
        let man = Man::new(subcommand.clone());
        let mut sections = Vec::new();
        man.render_synopsis_section(&mut sections)?;
        man.render_description_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        if subcommand.get_after_long_help().is_some() {
            man.render_extra_section(&mut sections)?;
        }
        let sections = String::from_utf8_lossy(&sections).replace("\n.SH ", "\n.SS ");
        let name = subcommand.get_bin_name().unwrap_or_else(|| subcommand.get_name()).to_uppercase();
        write!(page, ".SH \"{name}\"\n{sections}")?;
        subcommands(subcommand, page)?;
    }
    Ok(())
}

/// Prints what one of these made.
pub fn print(bytes: &[u8]) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(bytes)?;
    Ok(())
}
