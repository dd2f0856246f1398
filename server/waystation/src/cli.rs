//! The command line: what can be asked of the program, and how it ends.
//!
//! What must hold: the configuration is checked whole before anything is done; every failure says
//! what to do next and ends with the exit code that `waystation --help` names for it.

mod access;
mod accounts;
mod arguments;
mod config;
mod crashtest;
mod federation;
mod offline;
mod output;
mod password;
mod sessions;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use waystation_config::{ConfigError, Loaded, Sources};

use access::Access;
use arguments::{AdminCommand, Arguments, Command, Settings};

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

/// Does what the command line says.
pub(crate) fn run() -> Outcome {
    let Arguments { settings, command } = Arguments::parse();
    dispatch(command.unwrap_or(Command::Serve(Settings::default())), settings).unwrap_or_else(|error| {
        // A reader that has seen enough (`waystation user list | head`) is no failure.
        if matches!(&error, CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return Outcome::Exit(ExitCode::SUCCESS);
        }
        output::complain(&error);
        Outcome::Exit(ExitCode::from(error.code()))
    })
}

fn dispatch(command: Command, settings: Settings) -> Result<Outcome, CliError> {
    match command {
        Command::Serve(more) => return Ok(Outcome::Serve(Box::new(load(settings.and(more))?))),
        Command::Config(command) => config::run(command, settings)?,
        Command::Queue(command) => {
            offline::queue(&command, &load(settings.and(command.settings().clone()))?.config)?;
        }
        Command::Archive(command) => {
            offline::archive(&command, &load(settings.and(command.settings().clone()))?.config)?;
        }
        Command::Crashtest(command) => return Ok(Outcome::Exit(crashtest::run(&command, &settings)?)),
        Command::Admin(command) => {
            let loaded = load(settings.and(command.settings().clone()))?;
            let mut access = Access::new(loaded.config);
            let result = match command {
                AdminCommand::User(command) => accounts::run(command, &mut access),
                AdminCommand::Session(command) => sessions::run(command, &mut access),
                AdminCommand::Federation(command) => federation::run(command, &mut access),
                AdminCommand::Status(command) => sessions::status(&command, &mut access),
                AdminCommand::Reload(_) => sessions::reload(&mut access),
            };
            // What was begun is stored in any case.
            let closed = access.close();
            result.and(closed)?;
        }
    }
    Ok(Outcome::Exit(ExitCode::SUCCESS))
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
