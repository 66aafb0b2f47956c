//! Erasing payloads for good.

use quipu_proto::v1;
use quipu_proto::v1::erasure_service_client::ErasureServiceClient;
use tonic::transport::Channel;

use crate::client::{Client, Repeat};
use crate::error::Result;

/// Why a payload that was there cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Redaction {
    /// Its erasure key was destroyed: it is gone for good.
    Erased,
    /// It is sealed, and the server was started without the master key.
    Locked,
    /// For a reason that this client does not know.
    Other,
}

impl Redaction {
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Self::Erased),
            2 => Some(Self::Locked),
            _ => Some(Self::Other),
        }
    }
}

impl Client {
    /// Destroys keys that payloads are sealed with ([`Record::with_erasure_key`](crate::Record::with_erasure_key)), at once
    /// and for good: everything that was sealed with one of them, in every copy of the store, reads as
    /// [`Redaction::Erased`] from now on, and no record can be appended with it any more. 1 to 500 of 1 to 255 bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid), [`Error::Refused`](crate::Error::Refused) if the server has no master key,
    /// and those of the connection. After these it may be made again.
    pub async fn erase_keys<S: Into<String>>(
        &self,
        erasure_keys: impl IntoIterator<Item = S>,
    ) -> Result<v1::EraseKeysResponse> {
        let erasure_keys = erasure_keys.into_iter().map(Into::into).collect();
        let request = v1::EraseKeysRequest { erasure_keys };
        let call = || {
            let (mut service, request) = (self.erasure_service(), self.request(request.clone()));
            async move { service.erase_keys(request).await }
        };
        self.call(Repeat::Declares, call).await
    }

    /// Whether a key was destroyed.
    ///
    /// # Errors
    /// As [`erase_keys`](Self::erase_keys).
    pub async fn is_erased(&self, erasure_key: impl Into<String>) -> Result<bool> {
        let request = v1::GetErasureKeyRequest { erasure_key: erasure_key.into() };
        let call = || {
            let (mut service, request) = (self.erasure_service(), self.request(request.clone()));
            async move { service.get_erasure_key(request).await }
        };
        Ok(self.call(Repeat::Harmless, call).await?.destroyed)
    }

    fn erasure_service(&self) -> ErasureServiceClient<Channel> {
        ErasureServiceClient::new(self.channel.clone())
    }
}
