//! `waystation queue ...`, `waystation archive ...`: work on a data folder that no server uses.
//!
//! What must hold: the folder is locked while it is worked on, so that a server and these never
//! meet; a file that was written carries its name only when it is whole.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use waystation_archive::ExportError;
use waystation_config::{Config, Durability, Engine};
use waystation_core::Jid;
use waystation_core::queue::{QueueBackend, QueueError};
use waystation_storage::{DataDir, OpenError};

use super::arguments::{ArchiveCommand, ExportArchive, QueueCommand, QueueStats};
use super::output::{self, Visible};
use super::{CliError, access};
use crate::admin::storage_options;

/// Queues that are asked for at a time.
const PAGE: usize = 1_000;

/// What waits in all queues.
#[derive(Debug, Default, Serialize)]
struct Totals {
    queues: u64,
    pending: u64,
    bytes: u64,
    parked: u64,
}

/// Does a command of the queue.
pub(super) fn queue(command: &QueueCommand, config: &Config) -> Result<(), CliError> {
    let data_dir = lock(config)?;
    let folder = data_dir.path().join(crate::queue::FOLDER);
    if !folder.exists() {
        return Ok(output::line(format_args!("there is no queue in {}", data_dir.path().display()))?);
    }
    match command {
        QueueCommand::Repair(_) => {
            let failed = |error: waystation_queue::OpenError| CliError::Failed(error.to_string());
            let report = waystation_queue::repair(&folder).map_err(failed)?;
            // A clean report has no line end of its own, the others have.
            Ok(output::line(format_args!("{}", report.to_string().trim_end()))?)
        }
        QueueCommand::Stats(QueueStats { json, .. }) => {
            if config.durability == Durability::Memory {
                return Err(CliError::Unreachable(
                    "durability is \"memory\", so the queue lives in the running server only".to_owned(),
                ));
            }
            let queue = crate::queue::open(config, &data_dir).map_err(failed)?;
            let totals = actix_rt::System::new().block_on(totals(&*queue)).map_err(failed)?;
            if *json {
                return Ok(output::json(&totals)?);
            }
            output::line(format_args!("queues     {}", totals.queues))?;
            output::line(format_args!("pending    {} records, {} bytes", totals.pending, totals.bytes))?;
            Ok(output::line(format_args!("set aside  {} records", totals.parked))?)
        }
    }
}

async fn totals(queue: &dyn QueueBackend) -> Result<Totals, QueueError> {
    let mut totals = Totals::default();
    let mut after = None;
    loop {
        let names = queue.queues(String::new(), after.take(), PAGE).await?;
        let Some(last) = names.last() else { break };
        after = Some(last.clone());
        for name in names {
            let stats = queue.stats(name).await?;
            totals.queues += 1;
            totals.pending += stats.pending;
            totals.bytes += stats.bytes;
            totals.parked += stats.parked;
        }
    }
    queue.close().await?;
    Ok(totals)
}

/// Does a command of the archive.
pub(super) fn archive(command: &ArchiveCommand, config: &Config) -> Result<(), CliError> {
    let ArchiveCommand::Export(ExportArchive { account, output: file, .. }) = command;
    let account =
        Jid::parse(account).map_err(|error| CliError::Failed(format!("{}: {error}", Visible(account))))?;
    if config.storage.engine == Engine::Memory {
        return Err(CliError::Unreachable(
            "storage.engine is \"memory\", so archives live in the running server only".to_owned(),
        ));
    }
    let data_dir = lock(config)?;
    let count = match file {
        None => export(config, &data_dir, &account, &mut BufWriter::new(io::stdout()))?,
        Some(file) => {
            let part = Part::new(file)?;
            let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part.0);
            let mut out = BufWriter::new(opened.map_err(|error| cannot_write(&part.0, &error))?);
            let count = export(config, &data_dir, &account, &mut out)?;
            let written = out.into_inner().map_err(io::IntoInnerError::into_error);
            written
                .and_then(|out| out.sync_all())
                .and_then(|()| std::fs::rename(&part.0, file))
                .map_err(|error| cannot_write(file, &error))?;
            count
        }
    };
    output::note(format_args!("exported {count} messages"));
    Ok(())
}

fn export(
    config: &Config,
    data_dir: &DataDir,
    account: &Jid,
    out: &mut (dyn Write + Send),
) -> Result<u64, CliError> {
    let storage = waystation_storage::open(data_dir, &storage_options(config)).map_err(failed)?;
    actix_rt::System::new().block_on(async {
        let exported = waystation_archive::export(&*storage, account, out).await;
        let closed = storage.close().await.map_err(failed);
        let count = exported.map_err(|error| match error {
            ExportError::Output(error) => CliError::Output(error),
            error => CliError::Failed(error.to_string()),
        })?;
        closed.map(|()| count)
    })
}

/// A file that is written beside its place; what is left of it is removed.
struct Part(PathBuf);

impl Part {
    fn new(file: &Path) -> Result<Self, CliError> {
        let mut name = file
            .file_name()
            .ok_or_else(|| CliError::Failed(format!("{} is no name of a file", file.display())))?
            .to_owned();
        name.push(".part");
        Ok(Self(file.with_file_name(name)))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After a success it has another name.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Locks the folder of a configuration.
fn lock(config: &Config) -> Result<DataDir, CliError> {
    let folder = &config.data_dir;
    access::check_folder(folder, false)?;
    DataDir::lock(folder).map_err(|error| match error {
        OpenError::Locked { pid, .. } => {
            let process = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            CliError::Unreachable(format!(
                "{process} uses the data folder {}; this needs the folder for itself: stop the server first",
                folder.display()
            ))
        }
        error => CliError::Unreachable(error.to_string()),
    })
}

fn cannot_write(file: &Path, error: &io::Error) -> CliError {
    CliError::Failed(format!("{} cannot be written: {error}", file.display()))
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}
