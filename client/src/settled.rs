//! What became of an append under a condition whose answer was lost, or which somebody was faster than.
//!
//! An append that requires the revision that its own key has before it can be sent again and again: it is applied once,
//! because its own records break its condition. If it fails, whoever broke the condition is looked at: was it an earlier
//! try of the same, which is told by the ids of its records, it is done.

use std::time::Duration;

use tokio::time::Instant;

use crate::append::{Append, Appended};
use crate::client::Client;
use crate::error::{Error, Outcome, Result};
use crate::ids::Random;
use crate::retry::Backoff;

/// Between two looks at what is not synced yet.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(100);

/// How an append under a condition on its own key went.
pub(crate) enum Sent {
    Applied(Vec<Appended>),
    /// A condition does not hold, perhaps because an earlier try was applied.
    Conflict {
        /// The last revision of the key.
        actual: Option<u64>,
        error: Error,
    },
}

impl Append {
    /// Sends it until it is answered. The first of its conditions is on the revision of a key that it writes.
    pub(crate) async fn send_until_answered(&self, client: &Client) -> Result<Sent> {
        // One id for all tries: as long as the server knows it, it tells them from others.
        let append = self.clone().request_id(Random::uid().to_vec());
        let mut backoff = Backoff::new(client.settings.retry);
        // An earlier try may be there, or come to be.
        let mut is_in_doubt = false;
        loop {
            let error = match append.clone().send().await {
                Ok(appended) => return Ok(Sent::Applied(appended)),
                Err(error) => error,
            };
            match &error {
                Error::ConditionFailed { failed, .. } if !is_in_doubt || error.denies_earlier() => {
                    let of_key = failed.iter().find(|failed| failed.number == 0);
                    let actual = of_key.and_then(|failed| failed.actual);
                    return Ok(Sent::Conflict { actual, error });
                }
                // All else was tried again for as long as it may be.
                _ if error.outcome() == Outcome::Unknown => {
                    is_in_doubt = true;
                    backoff.wait(error).await?;
                }
                _ if is_in_doubt => return Err(Error::Unknown { cause: Box::new(error) }),
                _ => return Err(error),
            }
        }
    }
}

impl Client {
    /// Waits until a revision of a key can be read by whoever sees what is synced. It is in the log already, and mostly synced:
    /// that a condition does not hold is told when what it rests on is. So it looks, and no subscription is worth its while.
    pub(crate) async fn wait_for_revision(&self, topic: &str, key: &[u8], revision: u64) -> Result<()> {
        let deadline = Instant::now() + self.settings.retry.time_max.max(Duration::from_secs(1));
        let mut pause = LOOK_FIRST;
        loop {
            let stream = self.stream(topic, key).await?;
            if stream.is_some_and(|stream| stream.last_revision >= revision) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let message = format!("revision {revision} of a key of topic {topic} to be synced");
                return Err(Error::TimedOut { message });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }
}
