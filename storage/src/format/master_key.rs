//! The master key file: what is left of a tree of seeds from which the keys of sealed payloads are derived.
//!
//! ```text
//!  0          16    32     64           72            76           80
//!  | preamble | uid | salt | node count | content crc | header crc | store uid (16, or none) | node ... |
//! node  | depth (1) | path (10) | seed (16) |
//! ```
//!
//! - `uid`: random; the store whose payloads are sealed with it knows it by this.
//! - `salt`: 32 random bytes, by which the place of an erasure key in the tree does not tell its name.
//! - `store uid`: whose master key it is. Absent in files that were written before there was one; the required flag 1 says
//!   that it is there.
//! - `content crc`: CRC-32 of everything behind the header. `header crc`: CRC-32 of the 76 bytes before it.
//! - `path`: which way from the root to the node, one bit for each step, the first one highest; zeros behind `depth`.
//!
//! Nodes rise and are disjoint. What no node covers was destroyed, 100,000 leaves at most: an untouched file has one node, the
//! root, whose depth is 0. The file ends with its last node.

use super::{
    HeaderProblem, Invalid, PREAMBLE_BYTES, check_preamble_but_flags, crc, put_preamble, u32_at, u64_at,
};
use crate::types::Uid;

const MAGIC: &[u8; 8] = b"QUIPUKEY";
/// Bytes before the first node.
pub const HEADER_BYTES: usize = 80;
/// Bytes of the uid of a store.
pub const STORE_BYTES: usize = 16;
/// The required flag of a file that names its store.
const HAS_STORE: u32 = 1;
/// Bytes of a node.
pub const NODE_BYTES: usize = 1 + PATH_BYTES + SEED_BYTES;
/// Bytes of a path.
pub const PATH_BYTES: usize = 10;
/// Steps from the root to a leaf.
pub const DEPTH: u8 = 8 * PATH_BYTES as u8;
/// Bytes of a seed.
pub const SEED_BYTES: usize = 16;
/// Most keys that can be destroyed.
pub const ERASED_KEYS_MAX: u64 = 100_000;
/// No file has more: each destroyed key leaves one at each step of its way at most.
pub const NODES_MAX: u64 = ERASED_KEYS_MAX * DEPTH as u64;

mod at {
    pub(super) const REQUIRED: usize = 12;
    pub(super) const UID: usize = 16;
    pub(super) const SALT: usize = 32;
    pub(super) const NODE_COUNT: usize = 64;
    pub(super) const CONTENT_CRC: usize = 72;
    pub(super) const HEADER_CRC: usize = 76;
}
const _: () = assert!(at::UID == PREAMBLE_BYTES && at::HEADER_CRC + 4 == HEADER_BYTES);

/// Which way from the root to a node.
pub type Path = [u8; PATH_BYTES];

/// A subtree that is still there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Steps from the root.
    pub depth: u8,
    /// Which way.
    pub path: Path,
    /// What everything below is derived from.
    pub seed: [u8; SEED_BYTES],
}

/// No seed is ever shown.
impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({} steps along {:02x?})", self.depth, self.path)
    }
}

/// How many leaves no node covers.
pub(crate) fn destroyed(nodes: &[Node]) -> u128 {
    (1 << DEPTH) - nodes.iter().map(Node::leaves).sum::<u128>()
}

/// A path as a number; the first step is bit 79.
pub(crate) fn number(path: &Path) -> u128 {
    path.iter().fold(0, |number, &byte| number << 8 | u128::from(byte))
}

impl Node {
    /// The root of a tree.
    pub const fn root(seed: [u8; SEED_BYTES]) -> Self {
        Self { depth: 0, path: [0; PATH_BYTES], seed }
    }

    /// One past the last leaf below.
    fn end(&self) -> u128 {
        number(&self.path) + self.leaves()
    }

    /// How many leaves are below.
    pub(crate) fn leaves(&self) -> u128 {
        1 << (DEPTH - self.depth)
    }
}

/// The content of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct MasterKeyFile {
    /// What tells it from every other.
    pub uid: Uid,
    /// Whose it is, if it says so.
    pub store: Option<Uid>,
    /// See the drawing.
    pub salt: [u8; 32],
    /// What is left of the tree, in order.
    pub nodes: Vec<Node>,
}

impl MasterKeyFile {
    /// The whole file. Whoever has it wipes it.
    pub fn encode(uid: Uid, store: Option<Uid>, salt: &[u8; 32], nodes: &[Node]) -> Vec<u8> {
        let mut file = Vec::with_capacity(HEADER_BYTES + STORE_BYTES + nodes.len() * NODE_BYTES);
        file.resize(HEADER_BYTES, 0);
        if let Some(store) = store {
            file.extend_from_slice(&store.0);
        }
        for node in nodes {
            file.push(node.depth);
            file.extend_from_slice(&node.path);
            file.extend_from_slice(&node.seed);
        }
        put_preamble(MAGIC, &mut file[..PREAMBLE_BYTES]);
        let required = if store.is_some() { HAS_STORE } else { 0 };
        file[at::REQUIRED..at::UID].copy_from_slice(&required.to_le_bytes());
        file[at::UID..at::SALT].copy_from_slice(&uid.0);
        file[at::SALT..at::NODE_COUNT].copy_from_slice(salt);
        file[at::NODE_COUNT..at::CONTENT_CRC].copy_from_slice(&(nodes.len() as u64).to_le_bytes());
        let content_crc = crc(0, &file[HEADER_BYTES..]);
        file[at::CONTENT_CRC..at::HEADER_CRC].copy_from_slice(&content_crc.to_le_bytes());
        let header_crc = crc(0, &file[..at::HEADER_CRC]);
        file[at::HEADER_CRC..HEADER_BYTES].copy_from_slice(&header_crc.to_le_bytes());
        file
    }

    /// Decodes a whole file.
    pub fn decode(file: &[u8]) -> Result<Self, HeaderProblem> {
        let invalid = |detail, at| Err(HeaderProblem::Invalid(Invalid::new(detail, at)));
        if file.len() < HEADER_BYTES {
            return invalid("the master key is cut off", file.len());
        }
        if file[..HEADER_BYTES].iter().all(|&byte| byte == 0) {
            return Err(HeaderProblem::Blank);
        }
        if crc(0, &file[..at::HEADER_CRC]) != u32_at(file, at::HEADER_CRC) {
            return invalid("the checksum of the header does not match", at::HEADER_CRC);
        }
        let required = check_preamble_but_flags(MAGIC, file)?;
        if required > HAS_STORE {
            return Err(HeaderProblem::Newer(required));
        }
        let content = &file[HEADER_BYTES..];
        let nodes_at = if required == HAS_STORE { STORE_BYTES } else { 0 };
        let count = u64_at(file, at::NODE_COUNT);
        if count > NODES_MAX || content.len() as u64 != nodes_at as u64 + count * NODE_BYTES as u64 {
            return invalid("the file has another length than its header says", at::NODE_COUNT);
        }
        if crc(0, content) != u32_at(file, at::CONTENT_CRC) {
            return invalid("the checksum of the nodes does not match", at::CONTENT_CRC);
        }
        let (store, content) = content.split_at(nodes_at);
        let mut nodes = Vec::with_capacity(content.len() / NODE_BYTES);
        let mut end = 0;
        for (index, bytes) in content.chunks_exact(NODE_BYTES).enumerate() {
            let node = decode_node(bytes);
            let is_in_place = node.depth <= DEPTH
                && number(&node.path) >= end
                && number(&node.path).is_multiple_of(node.leaves());
            if !is_in_place {
                return invalid("the nodes do not make a tree", HEADER_BYTES + nodes_at + index * NODE_BYTES);
            }
            end = node.end();
            nodes.push(node);
        }
        if destroyed(&nodes) > u128::from(ERASED_KEYS_MAX) {
            return invalid("more keys are missing than can be destroyed", at::NODE_COUNT);
        }
        Ok(Self {
            uid: Uid(file[at::UID..at::SALT].try_into().expect("16 bytes")),
            store: store.try_into().ok().map(Uid),
            salt: file[at::SALT..at::NODE_COUNT].try_into().expect("32 bytes"),
            nodes,
        })
    }
}

fn decode_node(bytes: &[u8]) -> Node {
    let (path, seed) = bytes[1..].split_at(PATH_BYTES);
    let (path, seed) = (path.try_into().expect("ten bytes"), seed.try_into().expect("16 bytes"));
    Node { depth: bytes[0], path, seed }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All but the first leaves.
    fn all_behind(first: u128) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut start = first;
        while start < 1 << DEPTH {
            let steps = u8::try_from(start.trailing_zeros()).unwrap().min(DEPTH);
            let path = start.to_be_bytes()[16 - PATH_BYTES..].try_into().unwrap();
            nodes.push(Node { depth: DEPTH - steps, path, seed: [steps; SEED_BYTES] });
            start += 1 << steps;
        }
        nodes
    }

    fn encode(nodes: &[Node]) -> Vec<u8> {
        MasterKeyFile::encode(Uid([3; 16]), None, &[4; 32], nodes)
    }

    /// One that names its store, and one that does not.
    fn files() -> [Vec<u8>; 2] {
        let nodes = all_behind((1 << 16) + 2);
        [MasterKeyFile::encode(Uid([3; 16]), Some(Uid([5; 16])), &[4; 32], &nodes), encode(&nodes)]
    }

    #[test]
    fn a_file_comes_back_as_it_was() {
        for (file, store) in files().into_iter().zip([Some(Uid([5; 16])), None]) {
            let decoded = MasterKeyFile::decode(&file).unwrap();
            let MasterKeyFile { uid, store: found, salt, nodes } = decoded;
            assert_eq!(MasterKeyFile::encode(uid, found, &salt, &nodes), file);
            assert_eq!((uid, found, salt, nodes.len()), (Uid([3; 16]), store, [4; 32], 78));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for file in files() {
            for bit in 0..file.len() * 8 {
                let mut damaged = file.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(MasterKeyFile::decode(&damaged).is_err(), "bit {bit}");
            }
            for cut in 0..file.len() {
                assert!(MasterKeyFile::decode(&file[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_feature_that_is_not_known_here_is_a_newer_format() {
        let [mut file, _] = files();
        file[at::REQUIRED] |= 2;
        let header_crc = crc(0, &file[..at::HEADER_CRC]);
        file[at::HEADER_CRC..HEADER_BYTES].copy_from_slice(&header_crc.to_le_bytes());
        assert_eq!(MasterKeyFile::decode(&file), Err(HeaderProblem::Newer(3)));
    }

    #[test]
    fn nodes_that_overlap_or_lie_beside_the_tree_are_refused() {
        let node = |depth, first| {
            let mut path = [0; PATH_BYTES];
            path[0] = first;
            Node { depth, path, seed: [0; SEED_BYTES] }
        };
        let told = |nodes: &[Node]| match MasterKeyFile::decode(&encode(nodes)) {
            Ok(_) => "",
            Err(HeaderProblem::Invalid(invalid)) => invalid.detail,
            Err(problem) => panic!("{problem:?}"),
        };
        assert_eq!(told(&[node(1, 0), node(1, 0x80)]), "");
        let all = [node(1, 0), node(1, 0x80)];
        for wrong in [
            &[node(1, 0x80), node(1, 0)][..],
            &[node(0, 0), node(8, 1)],
            &[node(1, 0), node(1, 0x40), node(1, 0x80)],
            &[all[0], all[1], node(DEPTH + 1, 0)],
        ] {
            assert_eq!(told(wrong), "the nodes do not make a tree", "{wrong:?}");
        }
    }

    #[test]
    fn a_file_in_which_more_keys_are_missing_than_can_be_destroyed_is_refused() {
        let max = u128::from(ERASED_KEYS_MAX);
        assert!(MasterKeyFile::decode(&encode(&all_behind(max))).is_ok());
        for nodes in [all_behind(max + 1), Vec::new()] {
            let Err(HeaderProblem::Invalid(invalid)) = MasterKeyFile::decode(&encode(&nodes)) else {
                panic!("{} keys are missing", destroyed(&nodes));
            };
            assert_eq!(invalid.detail, "more keys are missing than can be destroyed");
        }
    }
}
