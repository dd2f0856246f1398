//! The binary: configuration, command line and wiring.

mod admin;
mod cli;
mod logging;

fn main() -> std::process::ExitCode {
    match cli::run(|_, _| Err("administration of a data folder needs the wiring".into())) {
        cli::Outcome::Serve(_) => std::process::ExitCode::FAILURE,
        cli::Outcome::Exit(code) => code,
    }
}
