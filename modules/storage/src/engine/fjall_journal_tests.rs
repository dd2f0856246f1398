use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use tempfile::TempDir;

use super::*;

/// How a journal that fjall wrote is laid out: where each of its batches ends.
struct Sample {
    folder: TempDir,
    ends: Vec<u64>,
}

impl Sample {
    /// Batches `1..=n`, each putting its number, with a longer value in every third.
    fn new(batches: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path()).unwrap();
        let space = database.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
        let other = database.keyspace("other", KeyspaceCreateOptions::default).unwrap();
        for n in 1..=batches {
            let mut batch = database.batch().durability(Some(PersistMode::Buffer));
            batch.insert(&space, n.to_be_bytes(), vec![0xab; if n % 3 == 0 { 400 } else { 7 }]);
            batch.remove(&other, n.to_be_bytes());
            batch.commit().unwrap();
        }
        drop((space, other, database));
        let sample = Self { folder, ends: Vec::new() };
        let mut source = Source::new(File::open(sample.journal()).unwrap());
        let ends = std::iter::from_fn(|| match source.next().unwrap() {
            Next::Batch { .. } => Some(source.read),
            _ => None,
        });
        let ends: Vec<_> = ends.collect();
        // Most of what is preallocated only makes the tests slow.
        let file = OpenOptions::new().write(true).open(sample.journal()).unwrap();
        file.set_len(ends.last().unwrap() + 10_000).unwrap();
        Self { ends, ..sample }
    }

    fn journal(&self) -> PathBuf {
        let journals = list(self.folder.path()).unwrap();
        assert_eq!(journals.len(), 1, "{journals:?}");
        journals[0].1.clone()
    }

    fn aside(&self) -> PathBuf {
        self.folder.path().join("aside")
    }

    fn check(&self, strict: bool) -> Result<(), OpenError> {
        check(self.folder.path(), &self.aside(), strict)
    }

    /// The numbers of the batches that fjall finds.
    fn found(&self) -> Vec<u64> {
        let database = open(self.folder.path()).unwrap();
        let space = database.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
        space.iter().map(|row| u64::from_be_bytes(row.key().unwrap()[..].try_into().unwrap())).collect()
    }
}

fn open(folder: &Path) -> fjall::Result<Database> {
    Database::builder(folder).worker_threads(1).journal_compression(fjall::CompressionType::None).open()
}

#[test]
fn every_batch_that_fjall_writes_is_understood() {
    let sample = Sample::new(20);
    assert_eq!(sample.ends.len(), 20);
    let extent = extent(&File::open(sample.journal()).unwrap()).unwrap();
    assert!(extent.clean && extent.end == sample.ends[19], "the rest of the file is preallocated");
    sample.check(true).unwrap();
    assert!(!sample.aside().exists());
    assert_eq!(sample.found(), (1..=20).collect::<Vec<_>>());
}

/// SECURITY.md section 6: a log tail truncated at each byte.
#[test]
fn a_tail_cut_at_any_byte_is_dropped_and_nothing_else() {
    let sample = Sample::new(6);
    let journal = sample.journal();
    let whole = std::fs::read(&journal).unwrap();
    let (before, end) = (sample.ends[4], sample.ends[5]);
    for cut in before..end {
        let mut torn = whole.clone();
        torn.truncate(usize::try_from(cut).unwrap());
        if cut % 2 == 0 {
            torn.resize(whole.len(), 0);
        }
        std::fs::write(&journal, torn).unwrap();
        sample.check(true).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        if cut % 64 == 0 || cut + 20 > end {
            assert_eq!(sample.found(), [1, 2, 3, 4, 5], "cut at {cut}");
        }
        assert!(journal.metadata().unwrap().len() <= whole.len() as u64);
    }
}

#[test]
fn a_hole_in_the_last_value_does_not_keep_the_store_from_opening() {
    let sample = Sample::new(6);
    let journal = sample.journal();
    let mut torn = std::fs::read(&journal).unwrap();
    let hole = usize::try_from(sample.ends[4]).unwrap() + 150;
    torn[hole..hole + 128].fill(0);
    std::fs::write(&journal, &torn).unwrap();
    assert!(open(sample.folder.path()).is_err(), "fjall alone copes: this check has no use any more");
    sample.check(true).unwrap();
    assert_eq!(sample.found(), [1, 2, 3, 4, 5]);
    let kept = std::fs::read(sample.aside()).unwrap();
    let range = usize::try_from(sample.ends[4]).unwrap()..usize::try_from(sample.ends[5]).unwrap();
    assert_eq!(kept, torn[range], "what was cut off is kept aside");
}

/// SECURITY.md section 6: each byte of the last records flipped.
#[test]
fn damage_in_front_of_whole_batches_is_never_dropped_silently() {
    let sample = Sample::new(6);
    let journal = sample.journal();
    let whole = std::fs::read(&journal).unwrap();
    for at in usize::try_from(sample.ends[3]).unwrap()..usize::try_from(sample.ends[4]).unwrap() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x41;
        std::fs::write(&journal, &damaged).unwrap();
        let error = sample.check(true).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "byte {at}: {error:?}");
        assert_eq!(std::fs::read(&journal).unwrap(), damaged, "byte {at}: refused and yet changed");
    }
    sample.check(false).unwrap();
    assert_eq!(sample.found(), [1, 2, 3, 4]);
}

#[test]
fn damage_in_a_sealed_journal_is_told_of() {
    let sample = Sample::new(6);
    let journal = sample.journal();
    std::fs::write(sample.folder.path().join("1.jnl"), "").unwrap();
    sample.check(true).unwrap();
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.set_len(sample.ends[5] - 1).unwrap();
    let error = sample.check(true).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged { detail, .. } if detail.contains("0.jnl")), "{error:?}");
}
