use waystation_storage::{DataDir, Kind, Options};

use super::*;
use std::sync::Arc;

fn store() -> (Arc<dyn Storage>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = DataDir::lock(folder.path()).unwrap();
    let options = Options { kind: Kind::Memory, ..Options::default() };
    (waystation_storage::open(&data_dir, &options).unwrap(), folder)
}

fn record(now: Instant) -> Record {
    let answered = |rid, text: &str, key: Option<&str>| Answered {
        rid,
        body: text.to_owned().into(),
        key: key.map(str::to_owned),
        got: rid,
        at: now,
        empty: text.is_empty(),
        repeats: 0,
    };
    Record {
        identity: Identity {
            host: "example.org".into(),
            from: Some("juliet@example.org/\"'<>".into()),
            lang: Some("en".into()),
            content: "text/html; charset=utf-8".into(),
            secure: true,
        },
        terms: Terms {
            wait: Duration::from_secs(60),
            hold: 1,
            requests: 2,
            inactivity: Duration::from_secs(61),
            polling: Duration::from_secs(5),
            max_pause: Duration::from_secs(120),
            acks: true,
            legacy: false,
            version: (1, 11),
        },
        snapshot: Snapshot {
            answered_rid: 8,
            sent: 4,
            got: 8,
            confirmed: 7,
            next_key: keys::parse(&"0a".repeat(20)),
            pause: Some(Duration::from_secs(90)),
        },
        answered: [answered(7, "<body>'\"</body>", None), answered(8, "", Some("k&<"))].into(),
        account: Jid::parse("juliet@example.org").unwrap(),
        stream: "the-stream".into(),
        acknowledged: 6,
        counting: Some(Counting { sent: 1, got: 2 }),
    }
}

async fn rows(storage: &dyn Storage) -> usize {
    storage.scan(SPACE, ScanRange::prefix(Bytes::new(), 1_000)).await.unwrap().len()
}

#[tokio::test]
async fn records_read_back() {
    let (storage, _folder) = store();
    let (now, hash) = (Instant::now(), sid_hash("sid"));
    assert_eq!(Record::load(&*storage, &hash, now).await.unwrap(), None);
    let mut stored = Vec::new();
    let whole = record(now);
    storage.commit(whole.put(&hash, &mut stored)).await.unwrap();
    assert_eq!(Record::load(&*storage, &hash, now).await.unwrap(), Some(whole.clone()));
    assert_eq!(stored, [7, 8]);
    // The identifier itself is nowhere.
    for (key, value) in storage.scan(SPACE, ScanRange::prefix(Bytes::new(), 9)).await.unwrap() {
        assert!(![key, value].iter().any(|bytes| bytes.windows(3).any(|w| w == b"sid")));
    }
    let mut small = whole.clone();
    small.identity.from = None;
    small.identity.lang = None;
    (small.snapshot.next_key, small.snapshot.pause, small.counting) = (None, None, None);
    small.answered.pop_front();
    storage.commit(small.put(&hash, &mut stored)).await.unwrap();
    assert_eq!(Record::load(&*storage, &hash, now).await.unwrap(), Some(small));
    assert_eq!((stored.as_slice(), rows(&*storage).await), (&[8][..], 2), "what is not listed is gone");
    storage.commit(Record::delete(&hash, &stored)).await.unwrap();
    assert_eq!(rows(&*storage).await, 0);
}

#[tokio::test]
async fn expired_and_damaged_records_are_removed_and_others_stay() {
    let (storage, _folder) = store();
    let now = Instant::now();
    let ended = SystemTime::now() - Duration::from_secs(3600);
    let put = |name: &str, head: Bytes| {
        let hash = sid_hash(name);
        Batch::new().put(SPACE, hash.to_vec(), head).put(SPACE, response_key(&hash, 7), "<body/>").put(
            SPACE,
            response_key(&hash, 8),
            "<body/>",
        )
    };
    for i in 0..300 {
        storage.commit(put(&format!("old {i}"), record(now).head(ended))).await.unwrap();
        storage.commit(put(&format!("damaged {i}"), "<session".into())).await.unwrap();
        storage.commit(put(&format!("new {i}"), record(now).head(SystemTime::now()))).await.unwrap();
    }
    assert_eq!(Record::load(&*storage, &sid_hash("old 1"), now).await.unwrap(), None);
    assert!(Record::load(&*storage, &sid_hash("damaged 1"), now).await.is_err());
    assert_eq!(sweep(&*storage).await.unwrap(), 600);
    assert_eq!(rows(&*storage).await, 900);
    assert!(Record::load(&*storage, &sid_hash("new 1"), now).await.unwrap().is_some());
    assert_eq!(sweep(&*storage).await.unwrap(), 0);
}

#[test]
fn a_record_lives_as_long_as_a_held_request_and_a_silent_client() {
    let record = record(Instant::now());
    let at = UNIX_EPOCH + Duration::from_secs(1_000);
    // The pause is longer than the inactivity.
    assert_eq!(record.expires(at), 1_000 + 60 + 90);
}
