//! `waystation session ...`, `waystation status`, `waystation reload`

use std::fmt;

use waystation_core::datetime::Timestamp;

use super::CliError;
use super::access::{Access, unexpected};
use super::arguments::{Kick, ListSessions, SessionCommand, Status};
use super::output::{self, Visible};
use crate::admin::{ArbiterTimers, Commits, Request, Response, SessionRow};

pub(super) fn run(command: SessionCommand, access: &mut Access) -> Result<(), CliError> {
    match command {
        SessionCommand::List(ListSessions { jid, page, .. }) => {
            super::accounts::list(access, page, |after, limit| Request::ListSessions {
                jid: jid.clone(),
                after,
                limit,
            })
        }
        SessionCommand::Kick(Kick { jid, condition, text, .. }) => {
            match access.ask(Request::Kick { jid: jid.clone(), condition, text })? {
                Response::Kicked { sessions: 0 } => {
                    Err(CliError::Failed(format!("{} has no session", Visible(&jid))))
                }
                Response::Kicked { sessions: 1 } => Ok(output::line(format_args!("closed 1 session"))?),
                Response::Kicked { sessions } => {
                    Ok(output::line(format_args!("closed {sessions} sessions"))?)
                }
                _ => Err(unexpected()),
            }
        }
    }
}

/// A session on one line.
pub(super) fn describe(session: &SessionRow) -> String {
    let since = i64::try_from(session.since)
        .ok()
        .and_then(|seconds| Timestamp::from_unix_millis(seconds.checked_mul(1000)?))
        .map_or_else(|| "?".to_owned(), |time| time.to_string());
    let priority = match session.priority {
        Some(priority) => format!("priority {priority}"),
        None => "unavailable".to_owned(),
    };
    let SessionRow { jid, address, security, .. } = session;
    format!("{:<40} {address:<21} {security:<8} {since} {priority}", Visible(jid))
}

pub(super) fn status(command: &Status, access: &mut Access) -> Result<(), CliError> {
    let Response::Status(status) = access.ask(Request::Status { timers: command.timers })? else {
        return Err(unexpected());
    };
    if command.json {
        return Ok(output::json(&status)?);
    }
    output::line(format_args!("waystation {}, process {}", Visible(&status.version), status.pid))?;
    output::line(format_args!("up         {} s", status.uptime))?;
    output::line(format_args!("hosts      {}", Visible(&status.hosts.join(", "))))?;
    output::line(format_args!("sessions   {}, account routes {}", status.sessions, status.routes))?;
    let memory = status.memory.map(|bytes| format!("{} MiB", bytes.div_ceil(1024 * 1024)));
    output::line(format_args!(
        "memory     {}, open descriptors {}",
        known(memory),
        known(status.descriptors)
    ))?;
    output::line(format_args!(
        "storage    {}, durability {}",
        Visible(&status.storage),
        Visible(&status.durability)
    ))?;
    if let Some(Commits { count, median_us, p99_us }) = status.commits {
        output::line(format_args!(
            "queue      the last {count} commits took {} in the median, p99 {}",
            Millis(median_us),
            Millis(p99_us)
        ))?;
    }
    for timers in status.timers.iter().flatten() {
        let ArbiterTimers { arbiter, p99_us, worst_us } = timers;
        output::line(format_args!(
            "timers     arbiter {arbiter}: p99 {} late, worst {} late",
            Millis(*p99_us),
            Millis(*worst_us)
        ))?;
    }
    Ok(())
}

/// Microseconds, written as milliseconds.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} ms", self.0 / 1000, self.0 % 1000)
    }
}

/// A figure that the system may not tell.
fn known(figure: Option<impl fmt::Display>) -> String {
    figure.map_or_else(|| "unknown".to_owned(), |figure| figure.to_string())
}

pub(super) fn reload(access: &mut Access) -> Result<(), CliError> {
    match access.ask(Request::Reload {})? {
        Response::Reloaded { warnings } => {
            for warning in &warnings {
                output::note(format_args!("{}", Visible(warning)));
            }
            Ok(output::line(format_args!("certificates were read again; new connections use them"))?)
        }
        _ => Err(unexpected()),
    }
}
