//! Looks for an order of a history's calls: the search of Wing and Gong (1993), which remembers what it has tried (Lowe, 2017).
//!
//! Of the calls that are not in the order yet, any may be the next that began before the first of them ended. If the model
//! then answers what the call was told, the search goes on from there; if it ends nowhere, another call is tried. Two ways
//! that have the same calls in the order and the same model go on alike: the second is not gone.

use std::collections::HashSet;

use super::model::{Answer, Call, Model};

/// A call of a history.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its number, which the records have that it appended.
    pub number: u32,
    /// What was asked.
    pub call: Call,
    /// What was told.
    pub answer: Answer,
    /// The moment before it began.
    pub began: u64,
    /// The moment after it ended.
    pub ended: u64,
}

/// Calls of a history, at most.
pub const CALLS_MAX: usize = 128;

/// Whether a history has an order; says how far it comes at best if not.
///
/// # Errors
/// The calls behind the longest order that was found, for a person.
pub fn check(history: &[Made]) -> Result<(), String> {
    assert!(history.len() <= CALLS_MAX, "{} calls are too many", history.len());
    let mut search = Search { history, tried: HashSet::new(), longest: Vec::new(), order: Vec::new() };
    if search.go(0, &Model::default()) {
        return Ok(());
    }
    let rest = (0..history.len()).filter(|number| !search.longest.contains(number));
    let line = |number: usize| {
        let Made { number, call, answer, began, ended } = &history[number];
        format!("{number:3} {began:4}..{ended:4} {call:?} -> {answer:?}\n")
    };
    let order: String = search.longest.iter().map(|number| line(*number)).collect();
    let rest: String = rest.map(line).collect();
    Err(format!("no order of the calls explains the answers. Longest:\n{order}Not in it:\n{rest}"))
}

struct Search<'a> {
    history: &'a [Made],
    tried: HashSet<(u128, Model)>,
    longest: Vec<usize>,
    order: Vec<usize>,
}

impl Search<'_> {
    fn go(&mut self, done: u128, model: &Model) -> bool {
        let is_left = |number: usize| done & (1 << number) == 0;
        let left = || self.history.iter().enumerate().filter(|(number, _)| is_left(*number));
        let known = left().filter(|(_, made)| made.answer != Answer::Unknown);
        let Some(first_end) = known.map(|(_, made)| made.ended).min() else { return true };
        if !self.tried.insert((done, model.clone())) {
            return false;
        }
        if self.order.len() > self.longest.len() {
            self.longest.clone_from(&self.order);
        }
        // Those that are known first: they leave fewer ways.
        let mut next: Vec<_> = left().filter(|(_, made)| made.began < first_end).collect();
        next.sort_by_key(|(_, made)| (made.answer == Answer::Unknown, made.ended));
        let next: Vec<_> = next.into_iter().map(|(number, _)| number).collect();
        for number in next {
            let made = &self.history[number];
            let mut after = model.clone();
            let answer = after.call(made.number, &made.call);
            // One of which nothing is known is in the order only if it changes something.
            let explains = match made.answer {
                Answer::Unknown => after != *model,
                _ => answer == made.answer,
            };
            if explains {
                self.order.push(number);
                if self.go(done | 1 << number, &after) {
                    return true;
                }
                self.order.pop();
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use quipu_storage::{ExpectedRevision, Revision};

    use super::super::model::{Actual, Expected, Written};
    use super::*;

    const KEY: Written = Written { key: 0, tag: 0 };

    fn made(began: u64, ended: u64, call: Call, answer: Answer) -> Made {
        Made { number: 0, call, answer, began, ended }
    }

    fn append(expected: Option<u64>) -> Call {
        let expected = expected.map_or(ExpectedRevision::NoStream, |r| ExpectedRevision::Exact(Revision(r)));
        Call::Append(vec![KEY], vec![Expected::Revision(0, expected)])
    }

    #[test]
    fn one_of_two_that_expect_the_same_fails() {
        let won = made(1, 4, append(None), Answer::Appended(0, vec![0]));
        let lost = made(2, 3, append(None), Answer::Failed(vec![(0, Actual::Revision(Some(0)))]));
        check(&[won.clone(), lost]).unwrap();
        let won_too = made(2, 3, append(None), Answer::Appended(1, vec![1]));
        check(&[won, won_too]).unwrap_err();
    }

    #[test]
    fn a_read_that_began_behind_an_append_sees_it() {
        let appended = |ended| made(1, ended, append(None), Answer::Appended(0, vec![0]));
        let read = |answer| made(3, 4, Call::LastRevision(0), Answer::LastRevision(answer));
        check(&[appended(2), read(Some(0))]).unwrap();
        check(&[appended(2), read(None)]).unwrap_err();
        check(&[appended(5), read(None)]).unwrap();
        check(&[appended(5), read(Some(0))]).unwrap();
    }

    #[test]
    fn what_failed_has_not_happened_and_what_is_unknown_may_have_once() {
        let failed = Answer::Failed(vec![(0, Actual::Revision(None))]);
        let read =
            |began, answer| made(began, began + 1, Call::LastRevision(0), Answer::LastRevision(answer));
        check(&[made(1, 2, append(Some(3)), failed.clone()), read(3, None)]).unwrap();
        check(&[made(1, 2, append(Some(3)), failed), read(3, Some(4))]).unwrap_err();
        let unknown = || made(1, 2, append(None), Answer::Unknown);
        check(&[unknown(), read(3, None)]).unwrap();
        check(&[unknown(), read(3, Some(0))]).unwrap();
        check(&[unknown(), read(3, None), read(5, Some(0))]).unwrap();
        check(&[unknown(), read(3, Some(0)), read(5, None)]).unwrap_err();
        check(&[unknown(), read(3, Some(1))]).unwrap_err();
        let too_early = Made { began: 3, ended: 4, ..unknown() };
        check(&[too_early, read(1, Some(0))]).unwrap_err();
    }

    #[test]
    fn one_that_saw_what_nobody_else_can_see_is_found() {
        // An append fails because of another one; whoever asks after that must see what it failed for.
        let seen = made(2, 3, append(None), Answer::Failed(vec![(0, Actual::Revision(Some(0)))]));
        let read = |answer| made(4, 5, Call::LastRevision(0), Answer::LastRevision(answer));
        let other = |answer| made(1, 6, append(None), answer);
        check(&[other(Answer::Appended(0, vec![0])), seen.clone(), read(Some(0))]).unwrap();
        check(&[other(Answer::Appended(0, vec![0])), seen.clone(), read(None)]).unwrap_err();
        check(&[other(Answer::Unknown), seen, read(None)]).unwrap_err();
    }
}
