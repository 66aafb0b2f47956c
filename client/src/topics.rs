//! Topics: making, changing, looking after them.

use quipu_proto::v1;
use tonic::{Status, Streaming};

use crate::client::{Client, Repeat};
use crate::error::{Error, Result};

/// Topics on one page of a list.
const PAGE_TOPICS: u32 = 1000;

impl Client {
    /// Makes a topic with default settings.
    ///
    /// # Errors
    /// [`Error::TopicExists`], [`Error::Invalid`] and those of the connection.
    pub async fn create_topic(&self, name: impl Into<String>) -> Result<v1::Topic> {
        self.create_topic_with(name, v1::TopicSettings::default()).await
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// [`Error::TopicExists`], [`Error::Invalid`] and those of the connection.
    pub async fn create_topic_with(
        &self,
        name: impl Into<String>,
        settings: v1::TopicSettings,
    ) -> Result<v1::Topic> {
        let request = v1::CreateTopicRequest { name: name.into(), settings: Some(settings) };
        let call = || {
            let (mut service, request) = (self.topic_service(), self.request(request.clone()));
            async move { service.create_topic(request).await }
        };
        present(self.call(Repeat::Never, call).await?.topic)
    }

    /// The topic of that name, made with default settings if there is none.
    ///
    /// # Errors
    /// [`Error::Invalid`] and those of the connection.
    pub async fn topic_or_create(&self, name: impl Into<String>) -> Result<v1::Topic> {
        let name = name.into();
        match self.topic(&*name).await {
            Err(Error::TopicNotFound { .. }) => match self.create_topic(&*name).await {
                // Somebody was faster.
                Err(Error::TopicExists { .. }) => self.topic(name).await,
                made => made,
            },
            found => found,
        }
    }

    /// Raises a topic's fencing token: from then on, appends [with a lower one](crate::Append::fencing_token) are refused. So
    /// a writer that takes a topic over shuts out the one before it. The answer's log end offset is behind all that one
    /// has appended. Appends without a token are not checked.
    ///
    /// # Errors
    /// [`Error::TopicFenced`] if the topic has a higher one, [`Error::TopicNotFound`] and those of the connection.
    pub async fn fence_topic(&self, name: impl Into<String>, token: u64) -> Result<v1::Topic> {
        let request = v1::FenceTopicRequest { name: name.into(), fencing_token: token };
        let call = || {
            let (mut service, request) = (self.topic_service(), self.request(request.clone()));
            async move { service.fence_topic(request).await }
        };
        present(self.call(Repeat::Declares, call).await?.topic)
    }

    /// A topic's settings and bounds.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`] and those of the connection.
    pub async fn topic(&self, name: impl Into<String>) -> Result<v1::Topic> {
        let request = v1::GetTopicRequest { name: name.into() };
        let call = || {
            let (mut service, request) = (self.topic_service(), self.request(request.clone()));
            async move { service.get_topic(request).await }
        };
        present(self.call(Repeat::Harmless, call).await?.topic)
    }

    /// The topics whose names begin with `prefix`, in order of their names: at most `topics_max`.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn topics(&self, prefix: impl Into<String>, topics_max: usize) -> Result<Vec<v1::Topic>> {
        let mut pages = self.topic_pages(prefix);
        let mut topics = Vec::new();
        while topics.len() < topics_max {
            let Some(page) = pages.next().await? else { break };
            topics.extend(page);
        }
        topics.truncate(topics_max);
        Ok(topics)
    }

    /// The topics whose names begin with `prefix`, a page of up to 1,000 at a time.
    pub fn topic_pages(&self, prefix: impl Into<String>) -> TopicPages {
        TopicPages { client: self.clone(), prefix: prefix.into(), token: Some(String::new()) }
    }

    /// Changes the settings that `fields` names, such as `retention.age_max_ms`; one that is named and absent goes back
    /// to its default. No fields: all of them.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`], [`Error::Invalid`] and those of the connection.
    pub async fn update_topic<S: Into<String>>(
        &self,
        name: impl Into<String>,
        settings: v1::TopicSettings,
        fields: impl IntoIterator<Item = S>,
    ) -> Result<v1::Topic> {
        let paths: Vec<String> = fields.into_iter().map(Into::into).collect();
        let mut request =
            v1::UpdateTopicRequest { name: name.into(), settings: Some(settings), ..Default::default() };
        if !paths.is_empty() {
            request.update_mask.get_or_insert_default().paths = paths;
        }
        let call = || {
            let (mut service, request) = (self.topic_service(), self.request(request.clone()));
            async move { service.update_topic(request).await }
        };
        present(self.call(Repeat::Declares, call).await?.topic)
    }

    /// Deletes a topic with all of its records, at once and for good.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`] and those of the connection.
    pub async fn delete_topic(&self, name: impl Into<String>) -> Result<()> {
        let request = v1::DeleteTopicRequest { name: name.into() };
        let call = || {
            let (mut service, request) = (self.topic_service(), self.request(request.clone()));
            async move { service.delete_topic(request).await }
        };
        self.call(Repeat::Never, call).await.map(drop)
    }

    /// Removes the records before an offset, for good; returns where the log starts now.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`], [`Error::OffsetUnwritten`] and those of the connection.
    pub async fn trim_topic(&self, name: impl Into<String>, before_offset: u64) -> Result<u64> {
        let request = v1::TrimTopicRequest { name: name.into(), before_offset };
        let call = || {
            let (mut service, request) = (self.topic_service(), self.request(request.clone()));
            async move { service.trim_topic(request).await }
        };
        Ok(self.call(Repeat::Declares, call).await?.log_start_offset)
    }

    /// Keeps the latest records of each key. Dropping what is returned cancels the compaction; what it has replaced so
    /// far stays.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`] and those of the connection.
    pub async fn compact_topic(
        &self,
        name: impl Into<String>,
        options: CompactOptions,
    ) -> Result<Upkeep<v1::CompactTopicResponse>> {
        let request = v1::CompactTopicRequest {
            name: name.into(),
            dry_run: options.dry_run,
            bytes_per_second_max: options.bytes_per_second_max,
            erased_only: options.erased_only,
        };
        let call = || {
            let (mut service, request) = (self.topic_service(), tonic::Request::new(request.clone()));
            async move { service.compact_topic(request).await }
        };
        Ok(Upkeep { stream: self.call(Repeat::Never, call).await? })
    }

    /// Looks at every checksum and offset of a topic on the server's disk.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`] and those of the connection.
    pub async fn verify_topic(&self, name: impl Into<String>) -> Result<Upkeep<v1::VerifyTopicResponse>> {
        let request = v1::VerifyTopicRequest { name: name.into() };
        let call = || {
            let (mut service, request) = (self.topic_service(), tonic::Request::new(request.clone()));
            async move { service.verify_topic(request).await }
        };
        Ok(Upkeep { stream: self.call(Repeat::Harmless, call).await? })
    }

    /// What a topic holds and does.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`] and those of the connection.
    pub async fn topic_status(&self, name: impl Into<String>) -> Result<v1::GetTopicStatusResponse> {
        let request = v1::GetTopicStatusRequest { name: name.into() };
        let call = || {
            let (mut service, request) = (self.topic_service(), self.request(request.clone()));
            async move { service.get_topic_status(request).await }
        };
        self.call(Repeat::Harmless, call).await
    }
}

/// How to compact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactOptions {
    /// Only say what would be removed.
    pub dry_run: bool,
    /// Most bytes to read a second. `None`: as the topic's settings say. 0: no limit; else at least 64 KiB.
    pub bytes_per_second_max: Option<u64>,
    /// Only remove the sealed bytes of payloads that were erased, and no record. Any topic can be compacted so.
    pub erased_only: bool,
}

/// A list of topics, page by page; made by [`Client::topic_pages`].
#[derive(Clone, Debug)]
pub struct TopicPages {
    client: Client,
    prefix: String,
    /// `None`: the last page has been had.
    token: Option<String>,
}

impl TopicPages {
    /// The next page; `None` behind the last.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn next(&mut self) -> Result<Option<Vec<v1::Topic>>> {
        let Some(token) = &self.token else { return Ok(None) };
        let request = v1::ListTopicsRequest {
            prefix: self.prefix.clone(),
            page_size: PAGE_TOPICS,
            page_token: token.clone(),
        };
        let call = || {
            let (mut service, request) = (self.client.topic_service(), self.client.request(request.clone()));
            async move { service.list_topics(request).await }
        };
        let page = self.client.call(Repeat::Harmless, call).await?;
        self.token = Some(page.next_page_token).filter(|token| !token.is_empty());
        Ok(Some(page.topics))
    }
}

/// What a compaction or verification says while it runs: progress, and at last its report. Dropping it cancels it.
#[derive(Debug)]
pub struct Upkeep<T> {
    stream: Streaming<T>,
}

impl<T> Upkeep<T> {
    /// What it says next; `None` when it has ended.
    ///
    /// # Errors
    /// What ended it.
    pub async fn next(&mut self) -> Result<Option<T>> {
        self.stream.message().await.map_err(|status: Status| Error::from(status))
    }
}

impl Upkeep<v1::CompactTopicResponse> {
    /// Waits for the end.
    ///
    /// # Errors
    /// What ended it before.
    pub async fn report(mut self) -> Result<v1::CompactionReport> {
        while let Some(said) = self.next().await? {
            if let Some(v1::compact_topic_response::Event::Report(report)) = said.event {
                return Ok(report);
            }
        }
        Err(Error::protocol("a compaction that ended without a report"))
    }
}

impl Upkeep<v1::VerifyTopicResponse> {
    /// Waits for the end.
    ///
    /// # Errors
    /// What ended it before.
    pub async fn report(mut self) -> Result<v1::VerifyReport> {
        while let Some(said) = self.next().await? {
            if let Some(v1::verify_topic_response::Event::Report(report)) = said.event {
                return Ok(report);
            }
        }
        Err(Error::protocol("a verification that ended without a report"))
    }
}

/// The topic, which is always there.
fn present(topic: Option<v1::Topic>) -> Result<v1::Topic> {
    topic.ok_or_else(|| Error::protocol("an answer without its topic"))
}
