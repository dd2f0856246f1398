//! `waystation user ...`

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde_json::json;
use zeroize::Zeroizing;

use super::access::{Access, unexpected};
use super::arguments::{AddUser, ListUsers, OneUser, Page, SetPassword, ShowUser, UserCommand};
use super::output::{self, Progress, Rows, Visible};
use super::{CliError, password};
use crate::admin::{ErrorKind, MAX_ADD, MAX_PAGE, NewUser, Password, Request, Response};

/// Longest line of a file of accounts: a JID, a blank, a password.
const MAX_LINE: usize = 8 * 1024;
/// Wrong lines that are shown one by one.
const MAX_COMPLAINTS: usize = 20;

pub(super) fn run(command: UserCommand, access: &mut Access) -> Result<(), CliError> {
    match command {
        UserCommand::Add(AddUser { jid: Some(jid), password_stdin, .. }) => add(&jid, password_stdin, access),
        // clap lets nothing through that has neither.
        UserCommand::Add(AddUser { bulk, .. }) => add_many(&bulk.unwrap_or_else(|| "-".into()), access),
        UserCommand::Passwd(command) => set_password(command, access),
        UserCommand::Remove(OneUser { jid, .. }) => {
            match access.ask(Request::RemoveUser { jid: jid.clone() })? {
                Response::Done {} => Ok(output::line(format_args!("removed {}", Visible(&jid)))?),
                _ => Err(unexpected()),
            }
        }
        UserCommand::List(ListUsers { host, page, .. }) => {
            list(access, page, |after, limit| Request::ListUsers { host: host.clone(), after, limit })
        }
        UserCommand::Show(ShowUser { jid, json, .. }) => show(jid, json, access),
    }
}

fn add(jid: &str, from_stdin: bool, access: &mut Access) -> Result<(), CliError> {
    let password = password::new_password(from_stdin, jid)?;
    let users = vec![NewUser { jid: jid.to_owned(), password }];
    match access.ask(Request::AddUsers { users })? {
        Response::Added { errors } => match errors.into_iter().next() {
            Some(None) => Ok(output::line(format_args!("added {}", Visible(jid)))?),
            Some(Some(error)) => {
                Err(CliError::Failed(format!("{}: {}", Visible(jid), Visible(&error.message))))
            }
            None => Err(unexpected()),
        },
        _ => Err(unexpected()),
    }
}

fn set_password(command: SetPassword, access: &mut Access) -> Result<(), CliError> {
    let SetPassword { jid, password_stdin, .. } = command;
    let password = password::new_password(password_stdin, &jid)?;
    match access.ask(Request::SetPassword { jid: jid.clone(), password })? {
        Response::Done {} => Ok(output::line(format_args!("changed the password of {}", Visible(&jid)))?),
        _ => Err(unexpected()),
    }
}

fn show(jid: String, json: bool, access: &mut Access) -> Result<(), CliError> {
    let Response::User(user) = access.ask(Request::ShowUser { jid })? else { return Err(unexpected()) };
    if json {
        return Ok(output::json(&user)?);
    }
    output::line(format_args!("account            {}", Visible(&user.jid)))?;
    output::line(format_args!("administrator      {}", if user.admin { "yes" } else { "no" }))?;
    output::line(format_args!("offline messages   {}", user.offline_messages))?;
    output::line(format_args!("sessions           {}", user.sessions.len()))?;
    for session in &user.sessions {
        output::line(format_args!("  {}", super::sessions::describe(session)))?;
    }
    Ok(())
}

/// Asks for page after page and writes them as they come.
pub(super) fn list(
    access: &mut Access,
    page: Page,
    request: impl Fn(Option<String>, usize) -> Request,
) -> Result<(), CliError> {
    let Page { limit, mut after, json } = page;
    let mut left = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut rows = Rows::new(json);
    let mut is_more = false;
    while left > 0 {
        let (last, more) = match access.ask(request(after.clone(), left.min(MAX_PAGE)))? {
            Response::Users { jids, more } => {
                for jid in &jids {
                    rows.row(&json!({ "jid": jid }), format_args!("{}", Visible(jid)))?;
                }
                left = left.saturating_sub(jids.len());
                (jids.into_iter().next_back(), more)
            }
            Response::Sessions { sessions, more } => {
                for session in &sessions {
                    rows.row(session, format_args!("{}", super::sessions::describe(session)))?;
                }
                left = left.saturating_sub(sessions.len());
                (sessions.into_iter().next_back().map(|session| session.jid), more)
            }
            _ => return Err(unexpected()),
        };
        is_more = more;
        after = last.or(after);
        if !more {
            break;
        }
    }
    let count = rows.finish()?;
    if is_more && let Some(after) = after {
        output::note(format_args!("there are more; go on with --after '{}'", Visible(&after)));
    } else if count == 0 && !json {
        output::note(format_args!("there are none"));
    }
    Ok(())
}

/// Makes the accounts of a file. Lines that are wrong are told, and the others done.
fn add_many(file: &Path, access: &mut Access) -> Result<(), CliError> {
    let mut input: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let opened = File::open(file)
            .map_err(|error| CliError::Failed(format!("{} cannot be read: {error}", file.display())))?;
        Box::new(BufReader::new(opened))
    };
    let mut bulk = Bulk::default();
    let mut progress = Progress::new();
    let mut batch: Vec<(usize, NewUser)> = Vec::new();
    let mut number = 0;
    loop {
        number += 1;
        let line = read_line(&mut input)
            .map_err(|error| CliError::Failed(format!("{} line {number}: {error}", file.display())))?;
        let at_end = line.is_none();
        match line.as_ref().map(|line| parse_line(line)) {
            Some(Ok(Some(user))) => batch.push((number, user)),
            Some(Err(message)) => bulk.complain(number, message),
            Some(Ok(None)) | None => {}
        }
        if batch.len() == MAX_ADD || (at_end && !batch.is_empty()) {
            bulk.add(access, std::mem::take(&mut batch))?;
            progress.at(format_args!("{} accounts added", bulk.added));
        }
        if at_end {
            break;
        }
    }
    progress.end();
    output::line(format_args!("added {} accounts", bulk.added))?;
    match bulk.wrong {
        0 => Ok(()),
        wrong => Err(CliError::Failed(format!("{wrong} lines could not be done"))),
    }
}

#[derive(Default)]
struct Bulk {
    added: usize,
    wrong: usize,
}

impl Bulk {
    fn add(&mut self, access: &mut Access, batch: Vec<(usize, NewUser)>) -> Result<(), CliError> {
        let (numbers, users): (Vec<usize>, Vec<NewUser>) = batch.into_iter().unzip();
        let jids: Vec<String> = users.iter().map(|user| user.jid.clone()).collect();
        let Response::Added { errors } = access.ask(Request::AddUsers { users })? else {
            return Err(unexpected());
        };
        if errors.len() != jids.len() {
            return Err(unexpected());
        }
        for ((number, jid), error) in numbers.into_iter().zip(jids).zip(errors) {
            match error {
                None => self.added += 1,
                // A disk that is full or a server that stops concerns all that follow as well.
                Some(error) if matches!(error.kind, ErrorKind::Failed | ErrorKind::Timeout) => {
                    return Err(CliError::Failed(format!(
                        "line {number}: {}: {}; {} accounts were added",
                        Visible(&jid),
                        Visible(&error.message),
                        self.added
                    )));
                }
                Some(error) => {
                    self.complain(number, &format!("{}: {}", Visible(&jid), Visible(&error.message)))
                }
            }
        }
        Ok(())
    }

    fn complain(&mut self, number: usize, message: &str) {
        self.wrong += 1;
        match self.wrong {
            ..=MAX_COMPLAINTS => output::note(format_args!("line {number}: {message}")),
            wrong if wrong == MAX_COMPLAINTS + 1 => output::note(format_args!("and more lines")),
            _ => {}
        }
    }
}

/// Reads a line without its end; `None` at the end of the input. Wiped when dropped.
fn read_line(input: &mut dyn BufRead) -> Result<Option<Zeroizing<String>>, String> {
    let mut line = Zeroizing::new(Vec::with_capacity(128));
    input.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
    if line.len() > MAX_LINE {
        return Err(format!("it is longer than {MAX_LINE} bytes"));
    }
    if line.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(&line).map_err(|_| "it is no text in UTF-8".to_owned())?;
    Ok(Some(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned())))
}

/// The account on a line, if there is one. No message quotes the line: it may be a password.
fn parse_line(line: &str) -> Result<Option<NewUser>, &'static str> {
    if line.trim().is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let missing = "expected a JID, a blank and a password";
    let (jid, password) = line.split_once([' ', '\t']).ok_or(missing)?;
    if jid.is_empty() || password.is_empty() {
        return Err(missing);
    }
    Ok(Some(NewUser { jid: jid.to_owned(), password: Password::new(password.to_owned()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_jid_and_a_password() {
        let parse = |line| {
            parse_line(line).map(|user| user.map(|user| (user.jid, user.password.reveal().to_owned())))
        };
        assert_eq!(parse("a@b secret"), Ok(Some(("a@b".into(), "secret".into()))));
        assert_eq!(parse("a@b\ttwo words "), Ok(Some(("a@b".into(), "two words ".into()))));
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("  "), Ok(None));
        assert_eq!(parse("# a@b secret"), Ok(None));
        for bad in ["a@b", "a@b ", " secret"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn input_is_read_line_by_line_within_limits() {
        let mut input: &[u8] = b"one\r\ntwo\nthree";
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut input).unwrap() {
            lines.push(line.to_string());
        }
        assert_eq!(lines, ["one", "two", "three"]);
        assert!(read_line(&mut &b"\xff\n"[..]).is_err());
        assert!(read_line(&mut &vec![b'x'; MAX_LINE + 1][..]).is_err());
    }
}
