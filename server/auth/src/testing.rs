//! A store in memory for this crate's tests, with failures on demand, and the client's side of
//! SCRAM.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use waystation_core::storage::{
    Batch, BoxFuture, Durability, Op, Row, ScanRange, Space, Storage, StorageError,
};

use crate::crypto::{Hash, Secret, digest, hi, hmac};
use crate::encoding::{decode_base64, encode_base64};

#[derive(Default)]
pub(crate) struct TestStore {
    rows: Mutex<BTreeMap<(Space, Bytes), Bytes>>,
    /// Every operation fails.
    pub(crate) broken: AtomicBool,
    /// As many commits fail with a conflict, as if another writer had come first.
    pub(crate) conflicts: AtomicUsize,
    /// Removed just before the next commit, as if by another writer.
    pub(crate) removed_before_commit: Mutex<Option<(Space, Bytes)>>,
}

impl TestStore {
    fn check(&self) -> Result<(), StorageError> {
        if self.broken.load(Ordering::SeqCst) {
            Err(StorageError::Io("broken by the test".into()))
        } else {
            Ok(())
        }
    }

    pub(crate) fn values(&self) -> Vec<Bytes> {
        self.rows.lock().unwrap().values().cloned().collect()
    }

    pub(crate) fn insert(&self, space: Space, key: Bytes, value: &'static [u8]) {
        self.rows.lock().unwrap().insert((space, key), Bytes::from_static(value));
    }

    fn apply(&self, batch: Batch) -> Result<(), StorageError> {
        self.check()?;
        if self.conflicts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(StorageError::Conflict);
        }
        let mut rows = self.rows.lock().unwrap();
        if let Some(row) = self.removed_before_commit.lock().unwrap().take() {
            rows.remove(&row);
        }
        for expect in &batch.expects {
            if rows.get(&(expect.space, expect.key.clone())) != expect.value.as_ref() {
                return Err(StorageError::Conflict);
            }
        }
        for op in batch.ops {
            match op {
                Op::Put { space, key, value } => drop(rows.insert((space, key), value)),
                Op::Delete { space, key } => drop(rows.remove(&(space, key))),
            }
        }
        Ok(())
    }
}

impl Storage for TestStore {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        Box::pin(async move {
            self.check()?;
            Ok(self.rows.lock().unwrap().get(&(space, key)).cloned())
        })
    }

    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        Box::pin(async move {
            self.check()?;
            let rows = self.rows.lock().unwrap();
            let inside = |key: &Bytes| {
                (match &range.start {
                    Bound::Included(start) => key >= start,
                    Bound::Excluded(start) => key > start,
                    Bound::Unbounded => true,
                }) && (match &range.end {
                    Bound::Included(end) => key <= end,
                    Bound::Excluded(end) => key < end,
                    Bound::Unbounded => true,
                })
            };
            let found = rows.iter().filter(|((s, key), _)| *s == space && inside(key));
            Ok(found.map(|((_, key), value)| (key.clone(), value.clone())).take(range.limit).collect())
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        let result = self.apply(batch);
        Box::pin(async move { result })
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn name(&self) -> &'static str {
        "test"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The client's side of SCRAM, written from RFC 5802 3 alone.
pub(crate) struct ScramClient {
    pub(crate) hash: Hash,
    pub(crate) gs2_header: String,
    pub(crate) binding: Vec<u8>,
    pub(crate) bare: String,
    pub(crate) password: Vec<u8>,
    /// Appended to the part of the final message that is signed.
    pub(crate) extension: String,
    /// Sent, and signed, in place of the nonce that the server sent.
    pub(crate) nonce: Option<String>,
    pub(crate) server_signature: Vec<u8>,
}

impl ScramClient {
    pub(crate) fn new(hash: Hash, username: &str, password: &str) -> Self {
        Self {
            hash,
            gs2_header: "n,,".into(),
            binding: vec![],
            bare: format!("n={username},r=clientnonce"),
            password: password.into(),
            extension: String::new(),
            nonce: None,
            server_signature: vec![],
        }
    }

    pub(crate) fn first(&self) -> Vec<u8> {
        format!("{}{}", self.gs2_header, self.bare).into_bytes()
    }

    pub(crate) fn last(&mut self, server_first: &[u8]) -> Vec<u8> {
        let server_first = std::str::from_utf8(server_first).unwrap();
        let attribute = |name: &str| server_first.split(',').find_map(|a| a.strip_prefix(name)).unwrap();
        let salt = decode_base64(attribute("s=")).unwrap();
        let salted = hi(self.hash, &self.password, &salt, attribute("i=").parse().unwrap());
        let client_key = hmac(self.hash, salted.as_bytes(), &[b"Client Key"]);
        let server_key = hmac(self.hash, salted.as_bytes(), &[b"Server Key"]);
        let channel = [self.gs2_header.as_bytes(), &self.binding].concat();
        let nonce = self.nonce.as_deref().unwrap_or(attribute("r="));
        let without_proof = format!("c={},r={nonce}{}", encode_base64(&channel), self.extension);
        let auth_message = format!("{},{server_first},{without_proof}", self.bare);
        let stored_key = digest(self.hash, client_key.as_bytes());
        let signature = hmac(self.hash, stored_key.as_bytes(), &[auth_message.as_bytes()]);
        let proof: Vec<u8> =
            client_key.as_bytes().iter().zip(signature.as_bytes()).map(|(a, b)| a ^ b).collect();
        let server_signature: Secret = hmac(self.hash, server_key.as_bytes(), &[auth_message.as_bytes()]);
        self.server_signature = server_signature.as_bytes().to_vec();
        format!("{without_proof},p={}", encode_base64(&proof)).into_bytes()
    }

    pub(crate) fn trusts(&self, additional: &[u8]) -> bool {
        additional == format!("v={}", encode_base64(&self.server_signature)).as_bytes()
    }
}
