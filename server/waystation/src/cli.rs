//! The command line: what can be asked of the program, and how it ends.
//!
//! What must hold: the configuration is checked whole before anything is done; every failure says
//! what to do next and ends with the exit code that `waystation --help` names for it.

mod access;
mod accounts;
mod arguments;
mod config;
mod output;
mod password;
mod sessions;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use waystation_config::{ConfigError, Loaded, Sources};

pub(crate) use access::OpenFolder;
use arguments::{Arguments, Command, Settings};

/// What is left to do after the command line.
pub(crate) enum Outcome {
    /// Serve with this configuration.
    Serve(Box<Loaded>),
    /// End.
    Exit(ExitCode),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
    /// The configuration has mistakes.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Neither a server nor its data folder can be used.
    #[error("{0}")]
    Unreachable(String),
    /// What was to be shown could not be written.
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    /// Interrupted at a prompt.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Output(_) => 1,
            // 2 is clap's, for wrong usage.
            Self::Config(_) => 3,
            Self::Unreachable(_) => 4,
            // As the shell says of a program that SIGINT ended.
            Self::Interrupted => 130,
        }
    }
}

/// Does what the command line says; `open` opens a data folder that no server uses.
pub(crate) fn run(open: OpenFolder) -> Outcome {
    let Arguments { settings, command } = Arguments::parse();
    let serve = |more: Settings| Ok(Outcome::Serve(Box::new(load(settings.clone().and(more))?)));
    let result = match command {
        None => serve(Settings::default()),
        Some(Command::Serve(more)) => serve(more),
        Some(command) => dispatch(command, settings, open).map(|()| Outcome::Exit(ExitCode::SUCCESS)),
    };
    result.unwrap_or_else(|error| {
        // A reader that has seen enough (`waystation user list | head`) is no failure.
        if matches!(&error, CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return Outcome::Exit(ExitCode::SUCCESS);
        }
        output::complain(&error);
        Outcome::Exit(ExitCode::from(error.code()))
    })
}

fn dispatch(command: Command, settings: Settings, open: OpenFolder) -> Result<(), CliError> {
    let access = |more: Settings| -> Result<_, CliError> {
        let loaded = load(settings.clone().and(more))?;
        Ok(access::Access::new(loaded.config, open))
    };
    match command {
        Command::Serve(_) => Ok(()),
        Command::User(command) => accounts::run(command, access),
        Command::Session(command) => sessions::run(command, access),
        Command::Config(command) => config::run(command, settings),
        Command::Status(command) => sessions::status(&command, access),
        Command::Reload(more) => sessions::reload(access(more)?),
    }
}

/// Reads the configuration.
fn load(settings: Settings) -> Result<Loaded, ConfigError> {
    let Settings { config, set, data_dir } = settings;
    waystation_config::load(&Sources {
        file: config,
        environment: std::env::vars_os().collect(),
        set,
        data_dir,
    })
}
