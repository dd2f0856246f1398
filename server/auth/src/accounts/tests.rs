use std::sync::atomic::Ordering;

use super::*;
use crate::credentials::prepare;
use crate::crypto::Hash;
use crate::testing::TestStore;

async fn open(store: &Arc<TestStore>) -> Accounts {
    let config = AccountsConfig { iterations: MIN_ITERATIONS, ..AccountsConfig::default() };
    Accounts::open(store.clone(), PasswordWorkers::new(4, 64), config).await.unwrap()
}

async fn fixture() -> (Arc<TestStore>, Accounts) {
    let store = Arc::new(TestStore::default());
    let accounts = open(&store).await;
    (store, accounts)
}

async fn accepts(accounts: &Accounts, local: &str, password: &str) -> bool {
    accounts.candidate("localhost", local).await.unwrap().verify_password(&prepare(password).unwrap())
}

#[tokio::test]
async fn an_account_lives_from_creation_to_removal() {
    let (_, accounts) = fixture().await;
    assert!(!accounts.exists("localhost", "juliet").await.unwrap());
    assert_eq!(accounts.create("localhost", "Juliet", "pencil").await.unwrap(), "juliet");
    assert!(accounts.exists("localhost", "JULIET").await.unwrap());
    assert!(!accounts.exists("other.example", "juliet").await.unwrap());
    assert!(accepts(&accounts, "juliet", "pencil").await);
    assert!(!accepts(&accounts, "juliet", "pencil2").await);
    assert!(matches!(accounts.create("localhost", "juliet", "x").await, Err(AccountError::Exists)));
    assert!(accepts(&accounts, "juliet", "pencil").await, "a second registration changed the password");
    accounts.remove("localhost", "juliet").await.unwrap();
    assert!(!accounts.exists("localhost", "juliet").await.unwrap());
    assert!(!accepts(&accounts, "juliet", "pencil").await);
    assert!(matches!(accounts.remove("localhost", "juliet").await, Err(AccountError::Unknown)));
}

#[tokio::test]
async fn of_two_registrations_at_once_one_succeeds() {
    let (_, accounts) = fixture().await;
    let attempts: Vec<_> = (0..8)
        .map(|i| {
            let accounts = accounts.clone();
            tokio::spawn(async move { accounts.create("localhost", "juliet", &format!("password{i}")).await })
        })
        .collect();
    let mut winners = vec![];
    for (i, attempt) in attempts.into_iter().enumerate() {
        match attempt.await.unwrap() {
            Ok(_) => winners.push(i),
            Err(AccountError::Exists) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(winners.len(), 1);
    assert!(accepts(&accounts, "juliet", &format!("password{}", winners[0])).await);
}

#[tokio::test]
async fn a_registration_that_loses_the_race_at_the_commit_sees_that_the_account_exists() {
    let (store, accounts) = fixture().await;
    store.conflicts.store(1, Ordering::SeqCst);
    assert!(matches!(accounts.create("localhost", "juliet", "pencil").await, Err(AccountError::Exists)));
}

#[tokio::test]
async fn a12_a_password_change_concerns_one_account_and_ends_the_old_password() {
    let (_, accounts) = fixture().await;
    accounts.create("localhost", "juliet", "old").await.unwrap();
    accounts.create("localhost", "victim", "victims own").await.unwrap();
    accounts.create("other.example", "juliet", "old").await.unwrap();
    accounts.set_password("localhost", "Juliet", "new").await.unwrap();
    assert!(accepts(&accounts, "juliet", "new").await);
    assert!(!accepts(&accounts, "juliet", "old").await);
    assert!(accepts(&accounts, "victim", "victims own").await);
    let other = accounts.candidate("other.example", "juliet").await.unwrap();
    assert!(other.verify_password(&prepare("old").unwrap()));
    assert!(matches!(accounts.set_password("localhost", "nobody", "x").await, Err(AccountError::Unknown)));
    assert!(!accounts.exists("localhost", "nobody").await.unwrap());
    assert!(matches!(
        accounts.set_password("localhost", "juliet", "\u{7}").await,
        Err(AccountError::Password)
    ));
    assert!(accepts(&accounts, "juliet", "new").await, "a refused change lost the password");
}

#[tokio::test]
async fn changes_are_tried_again_when_another_writer_came_first_but_not_for_ever() {
    let (store, accounts) = fixture().await;
    accounts.create("localhost", "juliet", "old").await.unwrap();
    store.conflicts.store(MAX_TRIES - 1, Ordering::SeqCst);
    accounts.set_password("localhost", "juliet", "new").await.unwrap();
    assert!(accepts(&accounts, "juliet", "new").await);
    store.conflicts.store(usize::MAX, Ordering::SeqCst);
    let result = accounts.remove("localhost", "juliet").await;
    assert!(matches!(result, Err(AccountError::Storage(StorageError::Conflict))));
    store.conflicts.store(0, Ordering::SeqCst);
    assert!(accounts.exists("localhost", "juliet").await.unwrap());
}

#[tokio::test]
async fn a_password_change_does_not_bring_a_removed_account_back() {
    let (store, accounts) = fixture().await;
    accounts.create("localhost", "juliet", "old").await.unwrap();
    *store.removed_before_commit.lock().unwrap() = Some((SPACE, storage::key(&["localhost", "juliet"])));
    let result = accounts.set_password("localhost", "juliet", "new").await;
    assert!(matches!(result, Err(AccountError::Unknown)));
    assert!(!accounts.exists("localhost", "juliet").await.unwrap());
}

#[tokio::test]
async fn a9_every_spelling_of_a_name_is_one_account() {
    let (_, accounts) = fixture().await;
    accounts.create("B\u{dc}CHER.example.", "Cafe\u{301}", "pencil").await.unwrap();
    for (host, local) in [
        ("b\u{fc}cher.example", "caf\u{e9}"),
        ("xn--bcher-kva.example", "CAF\u{c9}"),
        ("b\u{fc}cher.example", "cafe\u{301}"),
    ] {
        assert!(accounts.exists(host, local).await.unwrap(), "{local}@{host}");
        let again = accounts.create(host, local, "other").await;
        assert!(matches!(again, Err(AccountError::Exists)), "{local}@{host}");
    }
}

#[tokio::test]
async fn a9_malformed_names_and_passwords_are_refused_and_are_nobodys() {
    let (store, accounts) = fixture().await;
    let rows = store.values().len();
    let long = "a".repeat(1024);
    for bad in
        ["", "a b", "a@b", "a/b", "\u{2168}", "\u{aa}", "a\u{ad}", "a\u{ff20}b", "a\0", "a\u{378}", &long]
    {
        assert!(
            matches!(accounts.create("localhost", bad, "x").await, Err(AccountError::Name(_))),
            "{bad:?}"
        );
        assert!(matches!(accounts.set_password("localhost", bad, "x").await, Err(AccountError::Name(_))));
        assert!(matches!(accounts.remove("localhost", bad).await, Err(AccountError::Name(_))));
        assert!(!accounts.exists("localhost", bad).await.unwrap());
        assert!(!accepts(&accounts, bad, "x").await);
    }
    for bad in ["", "-", "a..b", "xn--a", "a\0b"] {
        assert!(matches!(accounts.create(bad, "juliet", "x").await, Err(AccountError::Name(_))), "{bad:?}");
    }
    for bad in ["", "\u{7}", "\u{ad}", &long] {
        let result = accounts.create("localhost", "juliet", bad).await;
        assert!(matches!(result, Err(AccountError::Password)), "{bad:?}");
    }
    assert_eq!(store.values().len(), rows);
}

#[tokio::test]
async fn f8_mixed_scripts_are_a_matter_of_policy() {
    let (store, accounts) = fixture().await;
    let result = accounts.create("localhost", "p\u{430}ypal", "x").await;
    assert!(matches!(result, Err(AccountError::MixedScripts)));
    let config = AccountsConfig { refuse_mixed_scripts: false, iterations: MIN_ITERATIONS };
    let lenient = Accounts::open(store, PasswordWorkers::default(), config).await.unwrap();
    lenient.create("localhost", "p\u{430}ypal", "x").await.unwrap();
    assert!(accounts.exists("localhost", "p\u{430}ypal").await.unwrap(), "the name itself is valid");
}

#[tokio::test]
async fn accounts_are_listed_in_pages() {
    let (_, accounts) = fixture().await;
    for local in ["carol", "alice", "dave", "bob", "caf\u{e9}"] {
        accounts.create("localhost", local, "x").await.unwrap();
    }
    accounts.create("localhost.example", "eve", "x").await.unwrap();
    accounts.create("local", "mallory", "x").await.unwrap();
    let all = accounts.list("localhost", None, MAX_PAGE).await.unwrap();
    assert_eq!(all, ["alice", "bob", "caf\u{e9}", "carol", "dave"]);
    assert_eq!(accounts.list("LOCALHOST", None, 2).await.unwrap(), ["alice", "bob"]);
    assert_eq!(accounts.list("localhost", Some("bob"), 2).await.unwrap(), ["caf\u{e9}", "carol"]);
    assert_eq!(
        accounts.list("localhost", Some("bz"), usize::MAX).await.unwrap(),
        ["caf\u{e9}", "carol", "dave"]
    );
    assert!(accounts.list("localhost", Some("dave"), 2).await.unwrap().is_empty());
    assert!(accounts.list("localhost", None, 0).await.unwrap().is_empty());
    assert!(accounts.list("nowhere", None, 2).await.unwrap().is_empty());
    assert!(matches!(accounts.list("", None, 2).await, Err(AccountError::Name(_))));
}

#[tokio::test]
async fn a_page_has_a_limit_of_its_own() {
    let (store, accounts) = fixture().await;
    for i in 0..MAX_PAGE + 1 {
        store.insert(SPACE, storage::key(&["localhost", &format!("user{i:06}")]), b"");
    }
    let page = accounts.list("localhost", None, usize::MAX).await.unwrap();
    assert_eq!(page.len(), MAX_PAGE);
    assert_eq!(
        accounts.list("localhost", page.last().map(|l| &**l), usize::MAX).await.unwrap(),
        ["user001000"]
    );
}

#[tokio::test]
async fn a5_the_secret_outlives_a_restart() {
    let (store, accounts) = fixture().await;
    let salt = |candidate: Candidate| candidate.keys(Hash::Sha256).salt.clone();
    let first = salt(accounts.candidate("localhost", "nobody").await.unwrap());
    let again = open(&store).await;
    assert_eq!(salt(again.candidate("localhost", "NOBODY").await.unwrap()), first);
    let (_, elsewhere) = fixture().await;
    assert_ne!(salt(elsewhere.candidate("localhost", "nobody").await.unwrap()), first);
}

#[tokio::test]
async fn a_damaged_secret_stops_the_start() {
    let (store, _) = fixture().await;
    store.insert(SPACE, Bytes::from_static(SECRET_KEY), b"short");
    let result = Accounts::open(store, PasswordWorkers::default(), AccountsConfig::default()).await;
    assert!(matches!(result.err(), Some(AccountError::Storage(StorageError::Corrupt(_)))));
}

#[tokio::test]
async fn a13_a_store_that_fails_is_an_error_and_never_a_success() {
    let (store, accounts) = fixture().await;
    accounts.create("localhost", "juliet", "pencil").await.unwrap();
    store.insert(SPACE, storage::key(&["localhost", "broken"]), b"\x01broken");
    assert!(matches!(accounts.candidate("localhost", "broken").await, Err(StorageError::Corrupt(_))));
    store.broken.store(true, Ordering::SeqCst);
    assert!(accounts.candidate("localhost", "juliet").await.is_err());
    assert!(accounts.candidate("localhost", "nobody").await.is_err());
    assert!(accounts.exists("localhost", "juliet").await.is_err());
    assert!(matches!(accounts.create("localhost", "romeo", "x").await, Err(AccountError::Storage(_))));
    assert!(matches!(accounts.set_password("localhost", "juliet", "x").await, Err(AccountError::Storage(_))));
    assert!(matches!(accounts.remove("localhost", "juliet").await, Err(AccountError::Storage(_))));
    store.broken.store(false, Ordering::SeqCst);
    assert!(accepts(&accounts, "juliet", "pencil").await, "the failure did not last");
}

#[tokio::test]
async fn passwords_are_not_in_the_store() {
    let (store, accounts) = fixture().await;
    accounts.create("localhost", "juliet", "CANARY-password").await.unwrap();
    assert!(store.values().iter().all(|value| !value.windows(6).any(|w| w == b"CANARY")));
}

#[tokio::test]
async fn a_full_queue_of_passwords_refuses_registrations() {
    let store = Arc::new(TestStore::default());
    let workers = PasswordWorkers::new(1, 0);
    let accounts = Accounts::open(store, workers.clone(), AccountsConfig::default()).await.unwrap();
    let (release, blocked) = std::sync::mpsc::sync_channel::<()>(1);
    let (started, has_started) = tokio::sync::oneshot::channel();
    let work = move || {
        started.send(()).unwrap();
        blocked.recv()
    };
    let busy = tokio::spawn(async move { workers.run(work).await });
    has_started.await.unwrap();
    let refused = accounts.create("localhost", "juliet", "pencil").await.unwrap_err();
    assert!(matches!(refused, AccountError::Busy(Busy)));
    release.send(()).unwrap();
    busy.await.unwrap().unwrap().unwrap();
}
