//! The binary: configuration, command line and wiring.

mod admin;
mod cli;
mod crashtest;
mod federation;
mod limits;
mod logging;
mod memory;
mod queue;
mod registry;
mod server;
mod web;

use std::process::ExitCode;

use waystation_config::Loaded;

fn main() -> ExitCode {
    memory::keep_to_small_pages();
    match cli::run() {
        cli::Outcome::Serve(loaded) => serve(&loaded),
        cli::Outcome::Exit(code) => code,
    }
}

fn serve(loaded: &Loaded) -> ExitCode {
    let config = &loaded.config;
    if let Err(error) = logging::start(&config.log) {
        // Without logging nobody would learn anything of the server.
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("waystation: {error}\n"));
        return ExitCode::FAILURE;
    }
    match actix_rt::System::new().block_on(server::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the server cannot run: {error}");
            ExitCode::FAILURE
        }
    }
}
