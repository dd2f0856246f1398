//! How commands reach a server: by its socket when it runs, else through its data folder.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use waystation_config::{Config, Engine};
use waystation_storage::{DataDir, OpenError};

use super::CliError;
use super::output::Visible;
use crate::admin::{AdminError, Client, ClientError, Dispatcher, Folder, Request, Response};

/// A server, running or not.
pub(super) struct Access {
    config: Config,
    reached: Option<Reached>,
}

enum Reached {
    /// A running server.
    Server(Client),
    /// A data folder that this process has locked.
    Folder(Folder, actix_rt::SystemRunner),
}

impl Access {
    /// The server of a configuration; it is looked for when it is first asked.
    pub(super) fn new(config: Config) -> Self {
        Self { config, reached: None }
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&mut self, request: Request) -> Result<Response, CliError> {
        let reached = match self.reached.take() {
            Some(reached) => reached,
            None => self.reach(&request)?,
        };
        match self.reached.insert(reached) {
            Reached::Server(client) => client.ask(&request).map_err(|error| match error {
                ClientError::Refused(error) => refused(&error),
                error => CliError::Unreachable(error.to_string()),
            }),
            Reached::Folder(folder, system) => {
                let dispatcher = Dispatcher::new(folder.backend.clone());
                system.block_on(dispatcher.answer(request)).map_err(|error| refused(&error))
            }
        }
    }

    /// Ends the work; what it changed is stored when this returns.
    pub(super) fn close(self) -> Result<(), CliError> {
        match self.reached {
            Some(Reached::Folder(folder, system)) => {
                system.block_on(folder.close()).map_err(|error| CliError::Failed(error.to_string()))
            }
            Some(Reached::Server(_)) | None => Ok(()),
        }
    }

    fn reach(&self, request: &Request) -> Result<Reached, CliError> {
        let folder = &self.config.data_dir;
        let at = folder.display();
        match Client::connect(folder) {
            Ok(Some(client)) => return Ok(Reached::Server(client)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(CliError::Unreachable(format!(
                    "no permission to use the data folder {at}; run this as the user who runs the server"
                )));
            }
            Err(error) => {
                return Err(CliError::Unreachable(format!(
                    "the admin socket in {at} cannot be used: {error}"
                )));
            }
        }
        if needs_server(request) {
            return Err(CliError::Unreachable(format!(
                "no server runs on the data folder {at}; start it with `waystation`, or name its folder \
                 with the --config, --set or --data-dir that it was started with"
            )));
        }
        if self.config.storage.engine == Engine::Memory {
            return Err(CliError::Unreachable(
                "storage.engine is \"memory\", so accounts live in the running server only; start it first"
                    .to_owned(),
            ));
        }
        check_folder(folder, matches!(request, Request::AddUsers { .. }))?;
        // A lock that is held although nobody answers: the server starts or stops just now.
        let data_dir = DataDir::lock(folder).map_err(|error| match error {
            OpenError::Locked { pid, .. } => {
                let process =
                    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
                CliError::Unreachable(format!(
                    "{process} uses the data folder {at}, but does not answer on its admin socket; it may be \
                     starting or stopping: try again in a moment"
                ))
            }
            error => CliError::Unreachable(error.to_string()),
        })?;
        let system = actix_rt::System::new();
        let folder = system
            .block_on(Folder::open(&self.config, &data_dir))
            .map_err(|error| CliError::Unreachable(error.to_string()))?;
        Ok(Reached::Folder(folder, system))
    }
}

/// Only adding accounts makes a folder, and only its owner works in it: files of another user
/// would keep the server from starting.
pub(super) fn check_folder(folder: &Path, may_be_made: bool) -> Result<(), CliError> {
    match folder.metadata() {
        Ok(found) => {
            let (owner, own) = (found.uid(), nix::unistd::geteuid().as_raw());
            if owner == own {
                return Ok(());
            }
            Err(CliError::Unreachable(format!(
                "the data folder {} belongs to user {owner}, and this is user {own}; run this as that user: \
                     sudo -u '#{owner}' waystation ...",
                folder.display()
            )))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && may_be_made => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CliError::Unreachable(format!(
            "there is no data folder {}; it is made when the server is first started or an account is first \
                 added. If the server has another one, name it with --config, --set or --data-dir",
            folder.display()
        ))),
        Err(error) => Err(CliError::Unreachable(format!(
            "the data folder {} cannot be used: {error}",
            folder.display()
        ))),
    }
}

/// A refusal may quote what was asked for.
fn refused(error: &AdminError) -> CliError {
    CliError::Failed(Visible(&error.message).to_string())
}

/// True for what only means something to a running server.
fn needs_server(request: &Request) -> bool {
    match request {
        Request::Status { .. }
        | Request::Reload {}
        | Request::ListSessions { .. }
        | Request::Kick { .. }
        | Request::ListDomains {}
        | Request::ShowDomain { .. }
        | Request::RetryDomain { .. }
        | Request::FlushDomain { .. } => true,
        Request::AddUsers { .. }
        | Request::SetPassword { .. }
        | Request::RemoveUser { .. }
        | Request::ListUsers { .. }
        | Request::ShowUser { .. } => false,
    }
}

/// An answer that does not belong to the question.
pub(super) fn unexpected() -> CliError {
    CliError::Unreachable(
        "the server answered something else; use the command of the same release".to_owned(),
    )
}
