//! The accounts of this server: which exist, and their credentials.
//!
//! Keys of the space: host and localpart, both prepared, joined by NUL; the server's secret under
//! a key that begins with NUL, where no host does.
//!
//! What must hold: of several that create one account at once, one succeeds; a change of password
//! never brings a removed account back; every name passes through the one preparation, so that
//! an account is found under every spelling of its name or under none.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use waystation_core::prep::{self, PrepError};
use waystation_core::storage::{self, Batch, ScanRange, Space, Storage, StorageError};

use crate::credentials::{Candidate, Credentials, DEFAULT_ITERATIONS, DeriveError, MIN_ITERATIONS};
use crate::secret::{Decoys, ServerSecret};
use crate::workers::{Busy, PasswordWorkers};

/// Where accounts are stored.
pub const SPACE: Space = Space("accounts");

/// Most accounts in one page of [`Accounts::list`].
pub const MAX_PAGE: usize = 1000;

const SECRET_KEY: &[u8] = b"\0server secret";

/// How often a change is tried again when another writer came first.
const MAX_TRIES: usize = 8;

/// Settings for accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountsConfig {
    /// Iterations for new passwords. Accounts that were made with another count keep it until
    /// their password changes, and can be told from unknown ones by it: change it before there
    /// are any.
    pub iterations: u32,
    /// Refuse new names that mix scripts as no writing system does (Latin and Cyrillic letters,
    /// say): such names are made to look like others.
    pub refuse_mixed_scripts: bool,
}

impl Default for AccountsConfig {
    fn default() -> Self {
        Self { iterations: DEFAULT_ITERATIONS, refuse_mixed_scripts: true }
    }
}

/// Why an operation on an account failed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The name of the account or of its host is malformed.
    #[error("the name of the account is malformed: {0}")]
    Name(PrepError),
    /// The name mixes scripts, which [`AccountsConfig::refuse_mixed_scripts`] forbids.
    #[error("the name of the account mixes scripts")]
    MixedScripts,
    /// The password cannot be prepared.
    #[error("the password is empty, too long, or holds a forbidden character")]
    Password,
    /// The account exists already.
    #[error("the account exists already")]
    Exists,
    /// There is no such account.
    #[error("there is no such account")]
    Unknown,
    /// Too many passwords are being hashed at the moment.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The operating system has no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
    /// The store failed, or kept changing.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<DeriveError> for AccountError {
    fn from(error: DeriveError) -> Self {
        match error {
            DeriveError::Password(_) => Self::Password,
            DeriveError::Random(error) => Self::Random(error),
        }
    }
}

/// The accounts in a store. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    storage: Arc<dyn Storage>,
    workers: PasswordWorkers,
    decoys: Decoys,
    config: AccountsConfig,
}

/// A prepared address and its key.
struct Name {
    host: String,
    local: String,
    key: Bytes,
}

impl Name {
    fn prepare(host: &str, local: &str) -> Result<Self, PrepError> {
        let host = prep::domain(host)?.into_owned();
        let local = prep::localpart(local)?.into_owned();
        let key = storage::key(&[&host, &local]);
        Ok(Self { host, local, key })
    }
}

impl Accounts {
    /// Opens the accounts of a store; on the first start makes the server's secret.
    ///
    /// # Errors
    /// When the store fails, or holds something that is no secret.
    pub async fn open(
        storage: Arc<dyn Storage>,
        workers: PasswordWorkers,
        mut config: AccountsConfig,
    ) -> Result<Self, AccountError> {
        config.iterations = config.iterations.max(MIN_ITERATIONS);
        let secret = server_secret(&*storage).await?;
        Ok(Self { storage, workers, decoys: Decoys::new(secret, config.iterations), config })
    }

    /// Creates an account. Returns its prepared localpart.
    ///
    /// # Errors
    /// [`AccountError`]; nothing was stored then.
    pub async fn create(&self, host: &str, local: &str, password: &str) -> Result<String, AccountError> {
        let name = Name::prepare(host, local).map_err(AccountError::Name)?;
        if self.config.refuse_mixed_scripts && prep::mixes_scripts(&name.local) {
            return Err(AccountError::MixedScripts);
        }
        // Spares the hashing; the batch below decides.
        if self.storage.get(SPACE, name.key.clone()).await?.is_some() {
            return Err(AccountError::Exists);
        }
        let credentials = self.derive(password).await?;
        let batch =
            Batch::new().expect(SPACE, name.key.clone(), None).put(SPACE, name.key, credentials.encode());
        match self.storage.commit(batch).await {
            Ok(()) => {
                tracing::info!(host = name.host, local = ?name.local, "account created");
                Ok(name.local)
            }
            Err(StorageError::Conflict) => Err(AccountError::Exists),
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces the password of an account. The caller closes its other sessions.
    ///
    /// # Errors
    /// [`AccountError`]; the old password remains then.
    pub async fn set_password(&self, host: &str, local: &str, password: &str) -> Result<(), AccountError> {
        let name = Name::prepare(host, local).map_err(AccountError::Name)?;
        if self.storage.get(SPACE, name.key.clone()).await?.is_none() {
            return Err(AccountError::Unknown);
        }
        let record = Bytes::from(self.derive(password).await?.encode());
        self.replace(&name, |batch| batch.put(SPACE, name.key.clone(), record.clone())).await?;
        tracing::info!(host = name.host, local = ?name.local, "password changed");
        Ok(())
    }

    /// Removes an account's credentials. What modules store of it, they remove themselves.
    ///
    /// # Errors
    /// [`AccountError`]; the account remains then.
    pub async fn remove(&self, host: &str, local: &str) -> Result<(), AccountError> {
        let name = Name::prepare(host, local).map_err(AccountError::Name)?;
        self.replace(&name, |batch| batch.delete(SPACE, name.key.clone())).await?;
        tracing::info!(host = name.host, local = ?name.local, "account removed");
        Ok(())
    }

    /// True when the account exists. A malformed name is nobody's.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn exists(&self, host: &str, local: &str) -> Result<bool, StorageError> {
        match Name::prepare(host, local) {
            Ok(name) => Ok(self.storage.get(SPACE, name.key).await?.is_some()),
            Err(_) => Ok(false),
        }
    }

    /// The localparts of a host in the order of their bytes: at most `limit` (and [`MAX_PAGE`]),
    /// beginning behind `after`, which need not exist any more.
    ///
    /// # Errors
    /// [`AccountError::Name`] for a malformed host or `after`, [`AccountError::Storage`] when the
    /// store fails.
    pub async fn list(
        &self,
        host: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, AccountError> {
        let host = prep::domain(host).map_err(AccountError::Name)?;
        let prefix = storage::key(&[&host, ""]);
        let mut range = ScanRange::prefix(prefix.clone(), limit.min(MAX_PAGE));
        if let Some(after) = after {
            range = range.after(Name::prepare(&host, after).map_err(AccountError::Name)?.key);
        }
        let rows = self.storage.scan(SPACE, range).await?;
        rows.into_iter()
            .map(|(key, _)| String::from_utf8(key[prefix.len()..].to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|_| StorageError::Corrupt("the name of an account is no UTF-8".into()).into())
    }

    /// What to verify a login against, for [`SaslServer::credentials`](crate::SaslServer). An
    /// unknown account gets credentials that nothing matches, at the same cost.
    ///
    /// # Errors
    /// When the store fails: refuse the login with
    /// [`SaslError::TemporaryAuthFailure`](crate::SaslError::TemporaryAuthFailure).
    pub async fn candidate(&self, host: &str, local: &str) -> Result<Candidate, StorageError> {
        let Ok(name) = Name::prepare(host, local) else {
            return Ok(self.decoys.candidate(host, local, None));
        };
        let record = self.storage.get(SPACE, name.key).await?;
        let found = record
            .map(|record| Credentials::decode(&record))
            .transpose()
            .map_err(|error| StorageError::Corrupt(error.to_string()))?;
        Ok(self.decoys.candidate(&name.host, &name.local, found))
    }

    /// The threads that check passwords.
    pub fn workers(&self) -> &PasswordWorkers {
        &self.workers
    }

    async fn derive(&self, password: &str) -> Result<Credentials, AccountError> {
        let iterations = self.config.iterations;
        let password = zeroize::Zeroizing::new(password.to_owned());
        Ok(self.workers.run(move || Credentials::derive(&password, iterations)).await??)
    }

    /// Changes an account that exists, and is the one that was looked at.
    async fn replace(&self, name: &Name, change: impl Fn(Batch) -> Batch) -> Result<(), AccountError> {
        for _ in 0..MAX_TRIES {
            let Some(current) = self.storage.get(SPACE, name.key.clone()).await? else {
                return Err(AccountError::Unknown);
            };
            let batch = change(Batch::new().expect(SPACE, name.key.clone(), Some(current)));
            match self.storage.commit(batch).await {
                Err(StorageError::Conflict) => continue,
                result => return Ok(result?),
            }
        }
        Err(StorageError::Conflict.into())
    }
}

/// Reads the secret; makes one when there is none. Of several that start at once, all get the
/// one that was stored first.
async fn server_secret(storage: &dyn Storage) -> Result<ServerSecret, AccountError> {
    let key = Bytes::from_static(SECRET_KEY);
    for _ in 0..MAX_TRIES {
        if let Some(stored) = storage.get(SPACE, key.clone()).await? {
            return ServerSecret::from_bytes(&stored)
                .ok_or_else(|| StorageError::Corrupt("the server's secret is damaged".into()).into());
        }
        let secret = ServerSecret::generate().map_err(AccountError::Random)?;
        let value = Bytes::copy_from_slice(secret.as_bytes());
        let batch = Batch::new().expect(SPACE, key.clone(), None).put(SPACE, key.clone(), value);
        match storage.commit(batch).await {
            Ok(()) => return Ok(secret),
            Err(StorageError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StorageError::Conflict.into())
}
