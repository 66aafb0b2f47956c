//! The keys of all erasure keys, derived from one seed, of which single ones can be destroyed.
//!
//! A binary tree of seeds with 2^80 leaves (Goldreich, Goldwasser, Micali: how to construct random functions). Each child
//! is derived from its parent, no parent from its children; a leaf is a key. Where an erasure key's leaf lies says a keyed
//! hash of its name, so that nothing is kept about keys that are there.
//!
//! To destroy a key is to replace the node above its leaf by those beside the way from there to the leaf: what these cover
//! can be derived as before, the leaf cannot.
//!
//! ```text
//!            root                       to destroy leaf x, the nodes marked * are kept,
//!           /    \                      and root, a, b and x are gone
//!          a      *
//!        /   \
//!       *     b                         each of n destroyed keys costs about 80 - log2 n nodes
//!           /   \
//!          x     *
//! ```
//!
//! That two among 10 million names have the same leaf, and are destroyed together, has a chance of 4e-11.

use super::crypto::{Crypto, Secret, wipe};
use crate::format::master_key::{DEPTH, Node, PATH_BYTES, Path, SEED_BYTES, destroyed};

/// What is left of a tree.
#[derive(Debug)]
pub(crate) struct Tree {
    crypto: Crypto,
    /// In order, disjoint.
    nodes: Vec<Node>,
    destroyed: u64,
}

impl Tree {
    pub(crate) fn new(crypto: Crypto, nodes: Vec<Node>) -> Self {
        let destroyed = u64::try_from(destroyed(&nodes)).unwrap_or(u64::MAX);
        Self { crypto, nodes, destroyed }
    }

    /// The leaf of a name.
    pub(crate) fn leaf(crypto: Crypto, salt: &[u8; 32], name: &str) -> Path {
        let hash = crypto.hash(salt, name.as_bytes());
        *hash.0.first_chunk().expect("a hash is longer than a path")
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How many keys were destroyed.
    pub(crate) fn destroyed(&self) -> u64 {
        self.destroyed
    }

    /// Whether a key can still be derived.
    pub(crate) fn has(&self, leaf: &Path) -> bool {
        self.above(leaf).is_some()
    }

    /// The key at a leaf, unless it was destroyed.
    pub(crate) fn key(&self, leaf: &Path) -> Option<Secret> {
        let mut node = self.above(leaf)?;
        while node.depth < DEPTH {
            node = node.child(self.crypto, bit(leaf, node.depth));
        }
        Some(self.crypto.hash(&node.seed, b"data key"))
    }

    /// The tree without these leaves, which rise and are different; those that are not there do not matter.
    pub(crate) fn without(&self, leaves: &[Path]) -> Self {
        // At once: memory that grows leaves copies of seeds behind.
        let mut nodes = Vec::with_capacity(self.nodes.len() + leaves.len() * usize::from(DEPTH));
        let mut rest = leaves;
        for node in &self.nodes {
            let before = rest.partition_point(|leaf| *leaf < node.path);
            rest = &rest[before..];
            let below = rest.partition_point(|leaf| node.covers(leaf));
            node.split(self.crypto, &rest[..below], &mut nodes);
            rest = &rest[below..];
        }
        Self::new(self.crypto, nodes)
    }

    fn above(&self, leaf: &Path) -> Option<Guarded> {
        let behind = self.nodes.partition_point(|node| node.path <= *leaf);
        let node = self.nodes.get(behind.checked_sub(1)?)?;
        node.covers(leaf).then(|| Guarded(*node))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(|node| wipe(&mut node.seed));
    }
}

/// A node that is wiped when it is not needed any more.
struct Guarded(Node);

impl Drop for Guarded {
    fn drop(&mut self) {
        wipe(&mut self.0.seed);
    }
}

impl std::ops::Deref for Guarded {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.0
    }
}

impl Node {
    fn covers(&self, leaf: &Path) -> bool {
        let (whole, rest) = (usize::from(self.depth / 8), self.depth % 8);
        let is_same = |index: usize, mask: u8| (self.path[index] ^ leaf[index]) & mask == 0;
        self.path[..whole] == leaf[..whole] && (rest == 0 || is_same(whole, !(0xff >> rest)))
    }

    /// HMAC of the child's place under the parent's seed. With the place in it, nobody can look for the seeds of many
    /// destroyed nodes at once: 128 bits are as hard to find as if there were one.
    fn child(&self, crypto: Crypto, is_right: bool) -> Guarded {
        let mut path = self.path;
        path[usize::from(self.depth / 8)] |= u8::from(is_right) << (7 - self.depth % 8);
        let depth = self.depth + 1;
        let mut place = [0; 1 + PATH_BYTES];
        place[0] = depth;
        place[1..].copy_from_slice(&path);
        let hash = crypto.hash(&self.seed, &place);
        let mut child = Guarded(Node { depth, path, seed: [0; SEED_BYTES] });
        child.0.seed.copy_from_slice(&hash.0[..SEED_BYTES]);
        child
    }

    /// Appends what covers all leaves below but for these.
    fn split(&self, crypto: Crypto, leaves: &[Path], out: &mut Vec<Node>) {
        if leaves.is_empty() {
            out.push(*self);
        } else if self.depth < DEPTH {
            let (left, right) = leaves.split_at(leaves.partition_point(|leaf| !bit(leaf, self.depth)));
            self.child(crypto, false).split(crypto, left, out);
            self.child(crypto, true).split(crypto, right, out);
        }
    }
}

/// Which way a path goes at this depth: right or left.
fn bit(path: &Path, depth: u8) -> bool {
    path[usize::from(depth / 8)] >> (7 - depth % 8) & 1 == 1
}

#[cfg(test)]
#[cfg(feature = "erasure")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::format::master_key::MasterKeyFile;
    use crate::types::Uid;

    fn whole() -> Tree {
        Tree::new(Crypto::new().unwrap(), vec![Node::root([7; SEED_BYTES])])
    }

    /// Leaves that lie close together as well as far apart.
    fn any_leaf() -> impl Strategy<Value = Path> {
        prop_oneof![
            any::<Path>(),
            (0_u8..4).prop_map(|last| {
                let mut path = [0; PATH_BYTES];
                path[PATH_BYTES - 1] = last;
                path
            }),
            (0_u8..4).prop_map(|first| [first << 6; PATH_BYTES]),
        ]
    }

    fn any_leaves() -> impl Strategy<Value = BTreeSet<Path>> {
        prop::collection::btree_set(any_leaf(), 0..12)
    }

    fn list(leaves: &BTreeSet<Path>) -> Vec<Path> {
        leaves.iter().copied().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn exactly_the_destroyed_leaves_have_no_key_and_all_others_the_same_as_before(
            first in any_leaves(), second in any_leaves(), others in any_leaves(),
        ) {
            let whole = whole();
            let tree = whole.without(&list(&first)).without(&list(&second));
            let gone: BTreeSet<Path> = first.union(&second).copied().collect();
            for leaf in gone.iter().chain(&others) {
                let key = tree.key(leaf).map(|key| key.0);
                prop_assert_eq!(key.is_none(), gone.contains(leaf));
                prop_assert_eq!(tree.has(leaf), key.is_some());
                if let Some(key) = key {
                    prop_assert_eq!(Some(key), whole.key(leaf).map(|key| key.0));
                }
            }
            prop_assert_eq!(tree.destroyed(), gone.len() as u64);
        }

        #[test]
        fn the_order_of_destructions_does_not_matter_and_the_file_holds_all_of_it(
            first in any_leaves(), second in any_leaves(),
        ) {
            let both: BTreeSet<Path> = first.union(&second).copied().collect();
            let at_once = whole().without(&list(&both));
            let one_by_one = whole().without(&list(&second)).without(&list(&first));
            prop_assert_eq!(at_once.nodes(), one_by_one.nodes());
            let file = MasterKeyFile::encode(Uid([1; 16]), None, &[2; 32], at_once.nodes());
            prop_assert_eq!(&MasterKeyFile::decode(&file).unwrap().nodes[..], at_once.nodes());
        }

        #[test]
        fn no_seed_on_the_way_to_a_destroyed_leaf_is_kept(leaves in any_leaves()) {
            let whole = whole();
            let tree = whole.without(&list(&leaves));
            for leaf in &leaves {
                let mut node = Guarded(whole.nodes[0]);
                loop {
                    prop_assert!(tree.nodes.iter().all(|kept| kept.seed != node.seed));
                    if node.depth == DEPTH {
                        break;
                    }
                    node = node.child(whole.crypto, bit(leaf, node.depth));
                }
            }
        }
    }

    #[test]
    fn a_destroyed_key_costs_80_nodes_at_most_and_less_the_more_there_are() {
        let crypto = Crypto::new().unwrap();
        let mut leaves: Vec<_> =
            (0..1024).map(|number| Tree::leaf(crypto, &[5; 32], &format!("subject-{number}"))).collect();
        leaves.sort_unstable();
        assert_eq!(whole().without(&leaves[..1]).nodes.len(), 80);
        let each = whole().without(&leaves).nodes.len() / leaves.len();
        assert!((69..=71).contains(&each), "{each}");
    }

    /// The keys of records that are on disks must never come out otherwise. Another implementation of HMAC agrees.
    #[test]
    fn a_name_has_the_key_that_it_always_had() {
        let crypto = Crypto::new().unwrap();
        let leaf = Tree::leaf(crypto, &[9; 32], "customer-17");
        let key = whole().key(&leaf).unwrap();
        let hex: String = leaf.iter().chain(&key.0).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "09ff024270f5d9ad975c6a7dbe1b4475138cd8e93fc6a30a3c0ff33c1be6af87cb90b83f40a200c39e19"
        );
    }
}
