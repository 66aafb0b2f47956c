//! Producers: how far named writers are.

use quipu_proto::v1;

use crate::client::{Client, Repeat};
use crate::error::{Error, Result};

/// Producers on one page of a list.
const PAGE_PRODUCERS: u32 = 1000;

pub use quipu_proto::v1::ProducerState;

impl Client {
    /// Epoch and last sequence of a producer, as far as they are synced: whoever takes it over goes on behind them. `None`:
    /// there is none of that name yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] and those of the connection.
    pub async fn producer(&self, name: impl Into<String>) -> Result<Option<ProducerState>> {
        let request = v1::GetProducerRequest { name: name.into() };
        let call = || {
            let (mut service, request) = (self.producer_service(), self.request(request.clone()));
            async move { service.get_producer(request).await }
        };
        Ok(self.call(Repeat::Harmless, call).await?.producer)
    }

    /// Producers in the order of their names, at most so many.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn producers(&self, most: usize) -> Result<Vec<ProducerState>> {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let left = u32::try_from(most - found.len()).unwrap_or(u32::MAX);
            let page_size = left.min(PAGE_PRODUCERS);
            if page_size == 0 {
                return Ok(found);
            }
            let request = v1::ListProducersRequest { page_size, page_token: page_token.clone() };
            let call = || {
                let (mut service, request) = (self.producer_service(), self.request(request.clone()));
                async move { service.list_producers(request).await }
            };
            let page = self.call(Repeat::Harmless, call).await?;
            found.extend(page.producers);
            found.truncate(most);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            if page.next_page_token == page_token {
                return Err(Error::protocol("a list of producers that does not go on"));
            }
            page_token = page.next_page_token;
        }
    }

    /// Lets the server forget a producer that does not append any more, to make room for others. A repeat of an append that
    /// it made would be appended again.
    ///
    /// # Errors
    /// [`Error::ProducerNotFound`] and those of the connection.
    pub async fn forget_producer(&self, name: impl Into<String>) -> Result<()> {
        let request = v1::ForgetProducerRequest { name: name.into() };
        let call = || {
            let (mut service, request) = (self.producer_service(), self.request(request.clone()));
            async move { service.forget_producer(request).await }
        };
        self.call(Repeat::Never, call).await.map(drop)
    }

    /// The same in one try.
    pub(crate) async fn forget_producer_once(&self, name: &str) -> Result<()> {
        let request = self.request(v1::ForgetProducerRequest { name: name.to_owned() });
        self.producer_service().forget_producer(request).await?;
        Ok(())
    }
}
