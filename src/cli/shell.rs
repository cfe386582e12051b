//! `hubrouter completions` and `hubrouter man`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, output};
use crate::error::{Result, bail, error};

#[derive(Args)]
#[command(after_help = "Example:
  hubrouter completions bash > ~/.local/share/bash-completion/completions/hubrouter")]
pub(super) struct CompletionsArgs {
    /// The shell that the script is for
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter man | man -l -
  hubrouter man hub build > hubrouter-hub-build.1
  hubrouter man --out ~/.local/share/man/man1")]
pub(super) struct ManArgs {
    /// The command, such as hub build [default: hubrouter itself]
    #[arg(conflicts_with = "out")]
    command: Vec<String>,
    /// Write the pages of all commands to this folder, which must exist
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut text = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    output::raw(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &ManArgs) -> Result<ExitCode> {
    if let Some(folder) = &args.out {
        clap_mangen::generate_to(Cli::command(), folder)
            .map_err(|e| error!(Io, "{}: cannot write the pages: {e}", folder.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut whole = Cli::command();
    // Gives each command its full name.
    whole.build();
    let mut command = &whole;
    for word in &args.command {
        command = match command.find_subcommand(word) {
            Some(found) => found,
            None => bail!(
                InvalidRequest,
                "{word:?}: expected a command of {}, found no such command",
                command.get_bin_name().unwrap_or(command.get_name())
            ),
        };
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut page)
        .map_err(|e| error!(Io, "cannot write the page: {e}"))?;
    output::raw(&page)?;
    Ok(ExitCode::SUCCESS)
}
