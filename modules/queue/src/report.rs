//! What a repair found, for people to read and for programs to act upon.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Something that was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The file that was damaged.
    pub file: PathBuf,
    /// Where in it the damage begins, in bytes.
    pub offset: u64,
    /// How many bytes were given up; 0 when the file itself is gone.
    pub bytes: u64,
    /// The records that stood there, as far as that is known. Some of them may have been
    /// acknowledged.
    pub records: Option<RangeInclusive<u64>>,
    /// What else is known of it.
    pub detail: String,
    /// The file that the bytes were copied to.
    pub kept: Option<PathBuf>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}, {} bytes: {}", self.file.display(), self.offset, self.bytes, self.detail)?;
        if let Some(records) = &self.records {
            write!(f, "; records {} to {}", records.start(), records.end())?;
        }
        if let Some(kept) = &self.kept {
            write!(f, "; kept in {}", kept.display())?;
        }
        Ok(())
    }
}

/// What a repair found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What cannot be read any more.
    pub lost: Vec<Lost>,
    /// Files from which the state was rebuilt without knowing what had been acknowledged: their
    /// records may be served again.
    pub served_again: Vec<PathBuf>,
    /// True when the checkpoint was lost, and with it all marks of before the oldest segment.
    pub marks_lost: bool,
}

impl RepairReport {
    /// True when nothing was wrong.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return write!(f, "nothing is damaged");
        }
        for lost in &self.lost {
            writeln!(f, "lost: {lost}")?;
        }
        for file in &self.served_again {
            writeln!(f, "records that were acknowledged may be served again: those of {}", file.display())?;
        }
        if self.marks_lost {
            writeln!(f, "lost: the checkpoint, and with it marks (how far streams had been stored)")?;
        }
        Ok(())
    }
}
