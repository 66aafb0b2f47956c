//! All cryptography of the engine: one keyed hash and one cipher, of the library `ring`.
//!
//! A [`Crypto`] is the proof that this build has them; without the feature `erasure` there can be none, so nothing else
//! needs to ask.

/// 32 bytes that are wiped when they are not needed any more.
pub(crate) struct Secret(pub(super) [u8; 32]);

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Bytes of a nonce.
pub(crate) const NONCE_BYTES: usize = 12;
/// Bytes that sealing adds.
pub(crate) const TAG_BYTES: usize = 16;

pub(crate) use library::{Crypto, wipe};

#[cfg(feature = "erasure")]
mod library {
    use ring::{aead, hmac};
    use zeroize::Zeroize as _;

    use super::{NONCE_BYTES, Secret};
    use crate::error::Result;

    /// See the [module](super).
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Crypto(());

    impl Crypto {
        pub(crate) fn new() -> Result<Self> {
            Ok(Self(()))
        }

        /// HMAC-SHA256.
        pub(crate) fn hash(self, key: &[u8], data: &[u8]) -> Secret {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
            let mut secret = Secret([0; 32]);
            secret.0.copy_from_slice(tag.as_ref());
            secret
        }

        /// ChaCha20-Poly1305: puts the ciphertext in the place of `content`, and the tag behind it.
        pub(crate) fn seal(
            self,
            key: &Secret,
            nonce: [u8; NONCE_BYTES],
            context: &[u8],
            content: &mut Vec<u8>,
        ) {
            let nonce = aead::Nonce::assume_unique_for_key(nonce);
            cipher(key)
                .seal_in_place_append_tag(nonce, aead::Aad::from(context), content)
                .expect("a payload is far below the cipher's 256 GiB");
        }

        /// Puts the content in the place of ciphertext and tag, and answers how long it is; `None` if it was not sealed with
        /// this key, nonce and context.
        pub(crate) fn open(
            self,
            key: &Secret,
            nonce: [u8; NONCE_BYTES],
            context: &[u8],
            sealed: &mut [u8],
        ) -> Option<usize> {
            let nonce = aead::Nonce::assume_unique_for_key(nonce);
            let opened = cipher(key).open_in_place(nonce, aead::Aad::from(context), sealed);
            opened.ok().map(|content| content.len())
        }
    }

    fn cipher(key: &Secret) -> aead::LessSafeKey {
        let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &key.0).expect("the key has 32 bytes");
        aead::LessSafeKey::new(key)
    }

    pub(crate) fn wipe(bytes: &mut [u8]) {
        bytes.zeroize();
    }
}

#[cfg(not(feature = "erasure"))]
mod library {
    use super::{NONCE_BYTES, Secret};
    use crate::error::{Error, Result};

    /// There is none in this build. That there can be none is nobody else's business: the field is private.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Crypto(std::convert::Infallible);

    impl Crypto {
        pub(crate) fn new() -> Result<Self> {
            Err(Error::ErasureUnavailable)
        }

        pub(crate) fn hash(self, _: &[u8], _: &[u8]) -> Secret {
            match self.0 {}
        }

        pub(crate) fn seal(self, _: &Secret, _: [u8; NONCE_BYTES], _: &[u8], _: &mut Vec<u8>) {
            match self.0 {}
        }

        pub(crate) fn open(self, _: &Secret, _: [u8; NONCE_BYTES], _: &[u8], _: &mut [u8]) -> Option<usize> {
            match self.0 {}
        }
    }

    pub(crate) fn wipe(bytes: &mut [u8]) {
        bytes.fill(0);
    }
}
