//! What a verification found, as plain data.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::journal::recovery::JournalEnd;
use crate::types::{Offset, Position, TopicName, Uid};

/// How bad a [`Finding`] is. In rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Not the store's: it is left alone and does no harm.
    Foreign,
    /// Damage that costs no record: there is a second copy, or the bytes can be made again.
    Redundant,
    /// Records cannot be read, or the topic or the store is refused: restore them from elsewhere.
    Unreadable,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The topic, if it is known.
    pub topic: Option<TopicName>,
    /// The offsets that it takes, if they are known.
    pub offsets: Option<Range<Offset>>,
    /// The file or directory.
    pub path: PathBuf,
    /// Where in the file it begins.
    pub position: Position,
    /// What does not hold.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Foreign => "foreign",
            Severity::Redundant => "damage without loss",
            Severity::Unreadable => "damage",
        })?;
        if let Some(topic) = &self.topic {
            write!(f, ", topic {topic}")?;
        }
        if let Some(offsets) = &self.offsets {
            write!(f, ", offsets {} to {} (exclusive)", offsets.start, offsets.end)?;
        }
        write!(f, ": {} in {} at position {}", self.detail, self.path.display(), self.position)
    }
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Intact copies of the checkpoint: 0 to 2.
    pub checkpoint_copies: u64,
    /// Headers of journal files.
    pub journal_files: u64,
    /// Frames of the journal behind the checkpoint.
    pub frames: u64,
    /// Batches in these frames.
    pub journal_batches: u64,
    /// Topics.
    pub topics: u64,
    /// Segments.
    pub segments: u64,
    /// Batches in segments.
    pub batches: u64,
    /// Of all batches, those whose records could not be looked at because this build lacks their codec. Their
    /// checksums were compared.
    pub batches_not_decoded: u64,
    /// Records, in segments and journal. What is in both counts twice.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Segment files that a crash left behind and that the next opening removes.
    pub leftover_files: u64,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// The store, if its checkpoint can be read.
    pub store: Option<Uid>,
    /// Whether the store had been closed properly. `false` for an open one.
    pub was_clean: bool,
    /// How the journal ends.
    pub journal_end: JournalEnd,
    /// How much was looked at.
    pub checked: Checked,
    /// What is not as it should be, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// Findings beyond [`VerifyOptions::findings_max`](super::VerifyOptions::findings_max), which were only counted.
    pub findings_left_out: u64,
}

impl Default for VerifyReport {
    fn default() -> Self {
        Self {
            store: None,
            was_clean: false,
            journal_end: JournalEnd::Clean,
            checked: Checked::default(),
            findings: Vec::new(),
            findings_left_out: 0,
        }
    }
}

impl VerifyReport {
    /// Whether nothing of the store is damaged. Foreign files that do no harm do not count.
    pub fn is_intact(&self) -> bool {
        self.findings_left_out == 0
            && self.findings.iter().all(|finding| finding.severity == Severity::Foreign)
    }

    /// Whether every record can be read: there may be damage, but it costs none.
    pub fn is_readable(&self) -> bool {
        self.findings_left_out == 0
            && self.findings.iter().all(|finding| finding.severity < Severity::Unreadable)
    }
}
