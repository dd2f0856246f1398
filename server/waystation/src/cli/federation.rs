//! `waystation federation ...`

use std::time::{SystemTime, UNIX_EPOCH};

use waystation_core::datetime::Timestamp;

use super::CliError;
use super::access::{Access, unexpected};
use super::arguments::FederationCommand;
use super::output::{self, Rows, Visible};
use crate::admin::{DomainRow, Request, Response};

pub(super) fn run(command: FederationCommand, access: &mut Access) -> Result<(), CliError> {
    match command {
        FederationCommand::List(command) => list(command.json, access),
        FederationCommand::Show(command) => show(&command.domain, command.json, access),
        FederationCommand::Retry(command) => {
            let domain = command.domain;
            match access.ask(Request::RetryDomain { domain: domain.clone() })? {
                Response::Retried { pairs } => Ok(output::line(format_args!(
                    "trying {} now, from {pairs} of the domains served here; `waystation federation show {}` \
                     tells how it goes",
                    Visible(&domain),
                    Visible(&domain)
                ))?),
                _ => Err(unexpected()),
            }
        }
        FederationCommand::Flush(command) => {
            match access.ask(Request::FlushDomain { domain: command.domain.clone() })? {
                Response::Flushed { stanzas } => Ok(output::line(format_args!(
                    "{stanzas} stanzas for {} go back to their senders",
                    Visible(&command.domain)
                ))?),
                _ => Err(unexpected()),
            }
        }
    }
}

fn domains(request: Request, access: &mut Access) -> Result<Vec<DomainRow>, CliError> {
    match access.ask(request)? {
        Response::Domains { domains } => Ok(domains),
        _ => Err(unexpected()),
    }
}

fn list(json: bool, access: &mut Access) -> Result<(), CliError> {
    let domains = domains(Request::ListDomains {}, access)?;
    let mut rows = Rows::new(json);
    for domain in &domains {
        let DomainRow { local, remote, state, waiting, bytes, .. } = domain;
        rows.row(
            domain,
            format_args!(
                "{:<32} {:<24} {state:<10} {waiting:>7} waiting, {:>6} KiB, oldest {}{}",
                Visible(remote),
                Visible(local),
                bytes.div_ceil(1024),
                domain.oldest.map_or_else(|| "-".to_owned(), ago),
                domain.next_try.map_or_else(String::new, |at| format!(", next try {}", ahead(at))),
            ),
        )?;
    }
    if rows.finish()? == 0 && !json {
        output::note(format_args!("nothing waits for another domain, and no stream with one is open"));
    }
    Ok(())
}

fn show(domain: &str, json: bool, access: &mut Access) -> Result<(), CliError> {
    let domains = domains(Request::ShowDomain { domain: domain.to_owned() }, access)?;
    if json {
        return Ok(output::json(&domains)?);
    }
    for (n, row) in domains.iter().enumerate() {
        if n > 0 {
            output::line(format_args!(""))?;
        }
        describe(row)?;
    }
    Ok(())
}

fn describe(row: &DomainRow) -> Result<(), CliError> {
    output::line(format_args!("from -> to         {} -> {}", Visible(&row.local), Visible(&row.remote)))?;
    output::line(format_args!("state              {}", row.state))?;
    output::line(format_args!("waiting            {}, {} bytes", row.waiting, row.bytes))?;
    if let Some(oldest) = row.oldest {
        output::line(format_args!("oldest             {}", ago(oldest)))?;
    }
    output::line(format_args!("handed over        {} since the route began", row.handed))?;
    output::line(format_args!("given back         {}", row.bounced))?;
    if let Some(error) = &row.last_error {
        output::line(format_args!("last error         {}", Visible(error)))?;
    }
    if let Some(at) = row.next_try {
        output::line(format_args!("next try           {}", ahead(at)))?;
    }
    let Some(stream) = &row.stream else { return Ok(()) };
    let yes = |flag| if flag { "yes" } else { "no" };
    output::line(format_args!(
        "stream             to {}, since {}",
        Visible(&stream.peer),
        time(stream.since)
    ))?;
    output::line(format_args!("security           {}", Visible(&stream.security)))?;
    output::line(format_args!("proven by          {}", stream.proven_by))?;
    if let Some(certificate) = &stream.certificate {
        output::line(format_args!("certificate        {}", Visible(certificate)))?;
    }
    output::line(format_args!("acknowledges       {}", yes(stream.acknowledges)))?;
    output::line(format_args!("both ways          {}", yes(stream.bidirectional)))?;
    Ok(())
}

fn time(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_unix_millis(seconds.checked_mul(1000)?))
        .map_or_else(|| "?".to_owned(), |time| time.to_string())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn ago(seconds: u64) -> String {
    format!("{} ago", span(now().saturating_sub(seconds)))
}

fn ahead(seconds: u64) -> String {
    match seconds.saturating_sub(now()) {
        0 => "now".to_owned(),
        left => format!("in {}", span(left)),
    }
}

/// Seconds for people: the two greatest units.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        let spans = [5, 60, 3599, 3600, 86_399, 90_000].map(span);
        assert_eq!(spans, ["5 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 1 h"]);
    }
}
