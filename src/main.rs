//! The command `hubrouter`.

fn main() -> std::process::ExitCode {
    hubrouter::cli::main()
}
