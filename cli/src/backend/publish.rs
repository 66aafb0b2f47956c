//! Appending through the embedded engine: some batches are on their way to the disk while the next is made.

use std::collections::VecDeque;

use quipu_proto::v1 as pb;
use quipu_storage::{Append, Appended, Durability, Error, Producer, Store, Ticket, Topic};

use super::{Acknowledged, ProducerAt, Publisher, convert};
use crate::exit::Result;
use crate::requirement::Requirement;

/// Batches that may be unacknowledged.
const TICKETS_MAX: usize = 16;

pub(super) struct EmbeddedPublisher {
    store: Store,
    topic: Topic,
    durability: Durability,
    tickets: VecDeque<Ticket>,
    acknowledged: Acknowledged,
    /// Of the next batch.
    requirements: Vec<Requirement>,
    fencing_token: Option<u64>,
    producer: Option<ProducerAt>,
}

impl EmbeddedPublisher {
    pub(super) fn new(
        store: Store,
        topic: Topic,
        durability: Durability,
        producer: Option<ProducerAt>,
    ) -> Self {
        let tickets = VecDeque::with_capacity(TICKETS_MAX);
        let (acknowledged, requirements) = (Acknowledged::default(), Vec::new());
        let fencing_token = None;
        Self { store, topic, durability, tickets, acknowledged, requirements, fencing_token, producer }
    }

    fn append(&self, body: &[u8]) -> Result<Append> {
        let mut append = Append::new().durability(self.durability).encoded(&self.topic, body)?;
        if let Some(ProducerAt { name, epoch, next_sequence }) = &self.producer {
            let producer = Producer { name: name.clone(), epoch: *epoch, sequence: *next_sequence };
            append = append.producer(producer);
        }
        if let Some(token) = self.fencing_token {
            append = append.fencing_token(&self.topic, token);
        }
        let conditions = self.requirements.iter().map(convert::condition);
        Ok(conditions.fold(append, |append, condition| append.require(&self.topic, condition)))
    }

    fn wait_oldest(&mut self) -> Result<()> {
        if let Some(ticket) = self.tickets.pop_front() {
            let appended = ticket.wait()?;
            self.note(&appended);
        }
        Ok(())
    }

    fn note(&mut self, appended: &[Appended]) {
        for appended in appended {
            let acknowledged = &mut self.acknowledged;
            acknowledged.records += appended.next_offset - appended.first_offset;
            acknowledged.first_offset.get_or_insert(appended.first_offset.0);
            acknowledged.next_offset = appended.next_offset.0;
        }
    }
}

impl Publisher for EmbeddedPublisher {
    fn require(&mut self, requirements: Vec<Requirement>) {
        self.requirements = requirements;
    }

    fn fence(&mut self, token: u64) {
        self.fencing_token = Some(token);
    }

    fn submit(&mut self, records: Vec<pb::Record>) -> Result<()> {
        while self.tickets.len() >= TICKETS_MAX {
            self.wait_oldest()?;
        }
        let mut body =
            Vec::with_capacity(records.iter().map(|record| prost::Message::encoded_len(record) + 6).sum());
        for record in &records {
            prost::encoding::message::encode(1, record, &mut body);
        }
        match self.store.submit(self.append(&body)?) {
            // What comes behind it is not to be appended.
            Ok(ticket) if ticket.is_refused() => {
                self.finish()?;
                ticket.wait()?;
            }
            Ok(ticket) => self.tickets.push_back(ticket),
            Err(Error::Overloaded { .. }) => {
                // The blocking way waits for room; what came before is acknowledged first.
                self.finish()?;
                let appended = self.store.append(self.append(&body)?)?;
                self.note(&appended);
            }
            Err(error) => return Err(error.into()),
        }
        self.requirements.clear();
        if let Some(producer) = &mut self.producer {
            producer.next_sequence += 1;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        while !self.tickets.is_empty() {
            self.wait_oldest()?;
        }
        Ok(())
    }

    fn acknowledged(&self) -> Acknowledged {
        self.acknowledged
    }
}
