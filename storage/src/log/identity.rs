//! The file that makes a directory a log: which one it is, where it starts, and up to where it was surely synced.
//!
//! Two copies, each alone in a block of its own, each written in place and synced before the other one is written. So
//! one of them is always whole, and writing them needs no room: a log on a full disk can still be trimmed. The one that
//! says less is written first; when that is on the disk the change is made, whatever becomes of the other.
//!
//! ```text
//!  0          16    32                 40                   48                56      60    64
//!  | preamble | uid | log start offset | synced base offset | synced position | zeros | crc |
//! ```
//!
//! `synced base offset` and `synced position`: a segment, by its base offset, and a place in its file. Everything before
//! was synced: what is damaged there was acknowledged and is never cut. `crc` is the CRC-32 of the 60 bytes before it.
//! Of two intact copies the one that is further on counts.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, File, OpenMode};
use crate::error::{Error, Result};
use crate::format::{
    FORMAT_VERSION, HeaderProblem, Invalid, check_preamble, crc, put_preamble, u32_at, u64_at,
};
use crate::types::{Offset, Position, Uid};

/// The file's name.
pub(crate) const NAME: &str = "log";
/// Its name while it is made.
pub(crate) const NAME_ASIDE: &str = "log.new";

const MAGIC: &[u8; 8] = b"QUIPULOG";
const COPY_BYTES: usize = 64;
const COPIES_AT: [u64; 2] = [0, 4096];
const FILE_BYTES: u64 = 8192;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: Uid,
    pub(crate) log_start_offset: Offset,
    /// Base offset of a segment, and up to where its file was synced.
    pub(crate) synced: (Offset, u64),
}

impl Identity {
    fn encode(&self) -> [u8; COPY_BYTES] {
        let mut out = [0; COPY_BYTES];
        put_preamble(MAGIC, &mut out);
        out[16..32].copy_from_slice(&self.uid.0);
        out[32..40].copy_from_slice(&self.log_start_offset.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.synced.0.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.synced.1.to_le_bytes());
        let sum = crc(0, &out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, HeaderProblem> {
        let invalid = |detail, at| HeaderProblem::Invalid(Invalid::new(detail, at));
        let bytes = bytes.get(..COPY_BYTES).ok_or(invalid("the file is cut off", bytes.len()))?;
        if crc(0, &bytes[..60]) != u32_at(bytes, 60) {
            return Err(invalid("the checksum does not match", 60));
        }
        check_preamble(MAGIC, bytes)?;
        Ok(Self {
            uid: Uid(bytes[16..32].try_into().expect("16 bytes")),
            log_start_offset: Offset(u64_at(bytes, 32)),
            synced: (Offset(u64_at(bytes, 40)), u64_at(bytes, 48)),
        })
    }

    /// Of two copies the one written later has the higher numbers: each of them only rises.
    fn rank(&self) -> (Offset, (Offset, u64)) {
        (self.log_start_offset, self.synced)
    }
}

/// The open file.
#[derive(Debug)]
pub(crate) struct IdentityFile {
    pub(crate) path: PathBuf,
    file: Arc<dyn File>,
    now: Identity,
    /// Where the copies are; the second one says what the file says.
    copies_at: [u64; 2],
}

impl IdentityFile {
    /// What it says.
    pub(crate) fn identity(&self) -> Identity {
        self.now
    }

    /// Opens the file in `dir`, if there is one.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let file = match disk.open(&path, OpenMode::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let mut best: Option<Identity> = None;
        let mut copies_at = COPIES_AT;
        let mut problem = None;
        for at in COPIES_AT {
            let mut bytes = [0; COPY_BYTES];
            let read = file.read_at(&mut bytes, at).map_err(|error| Error::io("read", &path, error))?;
            match Identity::decode(&bytes[..read]) {
                Ok(copy) if best.is_none_or(|best| best.rank() < copy.rank()) => {
                    best = Some(copy);
                    copies_at = if at == COPIES_AT[0] { [COPIES_AT[1], at] } else { COPIES_AT };
                }
                Ok(_) => {}
                Err(HeaderProblem::Newer(found)) => {
                    return Err(Error::NewerFormat { path, found, supported: u32::from(FORMAT_VERSION) });
                }
                Err(other) => problem = Some((at, other)),
            }
        }
        match (best, problem) {
            (Some(now), _) => Ok(Some(Self { path, file, now, copies_at })),
            (None, problem) => {
                let detail = match problem {
                    Some((_, HeaderProblem::Invalid(invalid))) => {
                        format!("neither copy is intact: {invalid}")
                    }
                    _ => "neither copy is intact".into(),
                };
                Err(Error::CorruptFile { path, position: Position::ZERO, detail })
            }
        }
    }

    /// Makes the file. That it has its name is not on the disk yet.
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, uid: Uid) -> Result<Self> {
        let (aside, path) = (dir.join(NAME_ASIDE), dir.join(NAME));
        let now = Identity { uid, log_start_offset: Offset::ZERO, synced: (Offset::ZERO, 0) };
        let make = || {
            match disk.remove(&aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = disk.open(&aside, OpenMode::Create)?;
            file.allocate(FILE_BYTES)?;
            for at in COPIES_AT {
                file.write_at(&[IoSlice::new(&now.encode())], at)?;
            }
            Ok(file)
        };
        let file = make().map_err(|error| Error::io("create", &aside, error))?;
        match file.sync() {
            Err(error) if !crate::planted::ignores_sync_errors() => {
                return Err(Error::failed("sync", &aside, error));
            }
            _ => {}
        }
        disk.rename(&aside, &path).map_err(|error| Error::io("rename", &path, error))?;
        Ok(Self { path, file, now, copies_at: COPIES_AT })
    }

    /// Replaces what the file says; when this returns, for good. `sync` syncs the file.
    ///
    /// # Errors
    /// Unless `sync` has failed, the file says what it said before.
    pub(crate) fn write(
        &mut self,
        new: Identity,
        sync: impl Fn(&dyn File, &Path) -> Result<()>,
    ) -> Result<()> {
        let copy = new.encode();
        let write = |at| self.file.write_at(&[IoSlice::new(&copy)], at);
        write(self.copies_at[0]).map_err(|error| Error::io("write", &self.path, error))?;
        sync(&*self.file, &self.path)?;
        self.now = new;
        self.copies_at.reverse();
        // The change is made. A second copy that cannot be written now is the first to be written next time.
        if write(self.copies_at[0]).is_ok() {
            sync(&*self.file, &self.path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_identity_comes_back_and_no_changed_byte_goes_unnoticed(
            uid: [u8; 16], start: u64, base: u64, position: u64, at in 0..COPY_BYTES, flip in 1..=255_u8,
        ) {
            let identity = Identity { uid: Uid(uid), log_start_offset: Offset(start), synced: (Offset(base), position) };
            let mut bytes = identity.encode();
            prop_assert_eq!(Identity::decode(&bytes), Ok(identity));
            bytes[at] ^= flip;
            prop_assert!(Identity::decode(&bytes).is_err());
        }
    }
}
