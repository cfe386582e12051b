//! Messages about an invalid command line.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Command, CommandFactory};

use super::{Cli, output};

/// Largest edit distance at which an option is suggested for a mistyped one.
const FARTHEST: usize = 2;

/// Prints the error, or the requested help or version, and returns the exit code. `arguments` are
/// those behind the program's name.
pub(super) fn say(mut error: clap::Error, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if !error.use_stderr() {
        // Help and version, in colour if the terminal supports it.
        return match error.print() {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                output::complain(&output::write_error("stdout", &e));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        };
    }
    let mut command = named_command(arguments);
    if let Some(option) = nearest(&error, &command) {
        let tip = ContextValue::String(format!("--{option}"));
        error.insert(ContextKind::SuggestedArg, tip);
        // The usage that came with the error contains another tip.
        let usage = ContextValue::StyledStr(command.render_usage());
        error.insert(ContextKind::Usage, usage);
    }
    let text = error.render().to_string();
    text.trim_end().lines().for_each(output::remark);
    ExitCode::from(2)
}

/// The option of `command` nearest to an unknown one, if it is near enough.
fn nearest(error: &clap::Error, command: &Command) -> Option<String> {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    if error.kind() != clap::error::ErrorKind::UnknownArgument {
        return None;
    }
    let unknown = unknown.strip_prefix("--")?;
    let options = command.get_arguments().filter_map(clap::Arg::get_long);
    let near = options.map(|option| (distance(unknown, option), option));
    let (away, option) = near.min()?;
    (away <= FARTHEST && away < unknown.len()).then(|| option.to_owned())
}

/// The subcommand that the arguments begin with.
fn named_command(arguments: impl Iterator<Item = OsString>) -> Command {
    let mut command = Cli::command();
    // Gives each command its full name.
    command.build();
    for argument in arguments {
        match command.find_subcommand(&argument) {
            Some(found) => command = found.clone(),
            None => break,
        }
    }
    command
}

/// Edit distance with swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let least = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped {
                    least.min(rows[i - 2][j - 2] + 1)
                } else {
                    least
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_that_are_swapped_are_one_away() {
        for (a, b, away) in [
            ("tpo", "top", 1),
            ("tpo", "output", 4),
            ("", "ab", 2),
            ("batch", "batch", 0),
        ] {
            assert_eq!(distance(a, b), away, "{a} {b}");
        }
    }

    #[test]
    fn commands_are_found_behind_their_group() {
        let words = ["generation", "prune", "--kep"].map(OsString::from);
        assert_eq!(named_command(words.into_iter()).get_name(), "prune");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
