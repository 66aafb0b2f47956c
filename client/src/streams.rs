//! Streams: the records of one key of a topic, in order, with revisions from 0.

use bytes::Bytes;
use quipu_proto::v1;

use crate::client::{Client, Repeat};
use crate::error::Result;
use crate::read::{Filter, Read};
use crate::subscribe::Subscribe;

pub use quipu_proto::v1::Stream as StreamInfo;

const PAGE_STREAMS: u32 = 1000;

fn of_key(key: impl Into<Vec<u8>>) -> Filter {
    Filter { keys: vec![key.into().into()], ..Filter::default() }
}

impl Client {
    /// Reads the records of a key: [`read`](Self::read) with the key as filter. It may start at a revision:
    /// [`Start::Revision`](crate::Start::Revision) and its like. Costs what the stream has, not what the topic has.
    pub fn read_stream(&self, topic: impl Into<String>, key: impl Into<Vec<u8>>) -> Read {
        self.read(topic).filter(of_key(key))
    }

    /// Follows the records of a key: [`subscribe`](Self::subscribe) with the key as filter.
    pub fn subscribe_stream(&self, topic: impl Into<String>, key: impl Into<Vec<u8>>) -> Subscribe {
        self.subscribe(topic).filter(of_key(key))
    }

    /// What is known of the records of a key, without reading them; `None` if no record ever had it. Of those that are
    /// synced.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`](crate::Error::TopicNotFound) and those of the connection.
    pub async fn stream(
        &self,
        topic: impl Into<String>,
        key: impl Into<Vec<u8>>,
    ) -> Result<Option<StreamInfo>> {
        let request = v1::GetStreamRequest { topic: topic.into(), key: key.into().into() };
        let call = || {
            let (mut service, request) = (self.log_service(), self.request(request.clone()));
            async move { service.get_stream(request).await }
        };
        Ok(self.call(Repeat::Harmless, call).await?.stream)
    }

    /// The streams of a topic whose keys begin with `prefix`, in the order of their keys, page by page.
    pub fn stream_pages(&self, topic: impl Into<String>, prefix: impl Into<Vec<u8>>) -> StreamPages {
        let (topic, prefix) = (topic.into(), prefix.into().into());
        StreamPages { client: self.clone(), topic, prefix, token: Some(Bytes::new()) }
    }
}

/// Streams of a topic, page by page; made by [`Client::stream_pages`].
#[derive(Debug)]
pub struct StreamPages {
    client: Client,
    topic: String,
    prefix: Bytes,
    /// `None`: the last page has been had.
    token: Option<Bytes>,
}

impl StreamPages {
    /// The next page; `None` behind the last.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`](crate::Error::TopicNotFound) and those of the connection.
    pub async fn next(&mut self) -> Result<Option<Vec<StreamInfo>>> {
        let Some(token) = &self.token else { return Ok(None) };
        let request = v1::ListStreamsRequest {
            topic: self.topic.clone(),
            prefix: self.prefix.clone(),
            page_size: PAGE_STREAMS,
            page_token: token.clone(),
        };
        let call = || {
            let (mut service, request) = (self.client.log_service(), self.client.request(request.clone()));
            async move { service.list_streams(request).await }
        };
        let page = self.client.call(Repeat::Harmless, call).await?;
        self.token = Some(page.next_page_token).filter(|token| !token.is_empty());
        Ok(Some(page.streams))
    }
}
