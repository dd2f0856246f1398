//! Writes an account's archive out, as XEP-0227 2.8 has it.
//!
//! What must hold: memory does not grow with the archive; what is written is well-formed and
//! complete, or an error is returned; messages come in the order of the archive.

use std::io::{self, Write};
use std::ops::Bound;

use waystation_core::Jid;
use waystation_core::stanza::escaped;
use waystation_core::storage::{ScanRange, Storage, StorageError, prefix_end};

use crate::chunk::{Chunk, ROWS};
use crate::{result, row};

/// Chunks read at a time.
const PAGE: usize = 16;

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The account is not the bare JID of a user.
    #[error("only the bare address of an account has an archive")]
    NotAnAccount,
    /// The archive could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The output could not be written.
    #[error("the export cannot be written: {0}")]
    Output(#[from] io::Error),
}

/// Writes the archive of `account` to `out` as a document of XEP-0227 (`<server-data/>` with one
/// host, one user and its `<archive xmlns='urn:xmpp:pie:0#mam'/>`, one result to a line), and
/// returns how many messages there were. An account without an archive gives an empty one.
///
/// Needs nothing but the store, so that it works without a server; `out` is written to as it
/// comes and may block. What is added meanwhile may or may not be part of it.
///
/// # Errors
/// [`ExportError`]; what was written until then is not a whole document.
pub async fn export(
    storage: &dyn Storage,
    account: &Jid,
    out: &mut (dyn Write + Send),
) -> Result<u64, ExportError> {
    let (Some(user), true) = (account.local(), account.is_bare()) else {
        return Err(ExportError::NotAnAccount);
    };
    write!(
        out,
        "<?xml version='1.0' encoding='UTF-8'?>\n<server-data xmlns='urn:xmpp:pie:0'>\n<host jid='{}'>\n\
         <user name='{}'>\n<archive xmlns='urn:xmpp:pie:0#mam'>\n",
        escaped(account.domain()),
        escaped(user)
    )?;
    let prefix = row::prefix(account);
    let end = prefix_end(&prefix).map_or(Bound::Unbounded, Bound::Excluded);
    let mut start = Bound::Included(prefix.clone());
    let mut messages = 0;
    let mut line = Vec::new();
    loop {
        let range = ScanRange { start, end: end.clone(), reverse: false, limit: PAGE };
        let rows = storage.scan(ROWS, range).await?;
        let Some((last, _)) = rows.last() else { break };
        start = Bound::Excluded(last.clone());
        for (key, value) in rows {
            let chunk = Chunk::decode(row::position_of(&key, &prefix)?, &value)?;
            for entry in chunk.entries() {
                let entry = entry?;
                line.clear();
                result::write(&mut line, account, None, entry.position, &chunk.row(&entry)?);
                line.push(b'\n');
                out.write_all(&line)?;
                messages += 1;
            }
        }
    }
    out.write_all(b"</archive>\n</user>\n</host>\n</server-data>\n")?;
    out.flush()?;
    Ok(messages)
}
