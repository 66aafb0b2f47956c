//! The rows, one module each. A module has one function that returns its rows; [`all`] lists them.

mod append;
mod erasure;
mod limits;
mod log;
mod open;
mod read;
mod service;
mod store;
pub(crate) mod streams;

use crate::row::Row;

/// Every row, in the order of the report.
pub fn all() -> Vec<Row> {
    [
        log::rows(),
        append::rows(),
        read::rows(),
        streams::rows(),
        erasure::rows(),
        open::rows(),
        service::rows(),
        limits::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether a row runs the real `quipu`.
pub fn needs_quipu(row: &Row) -> bool {
    row.name.starts_with("service-")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::measure::measure;
    use crate::row::Scene;

    #[test]
    fn names_are_unique_and_rows_explain_themselves() {
        let mut names = BTreeSet::new();
        for row in all() {
            assert!(names.insert(row.name.clone()), "two rows are called {}", row.name);
            assert!(!row.what.is_empty(), "{} says nothing", row.name);
            assert!(
                !row.against.is_empty() || !row.bar.needs_reference(),
                "{} is held against nothing",
                row.name
            );
        }
    }

    #[test]
    fn every_row_runs_and_checks_what_it_wrote() {
        // Rows that start this program as a child need the program, not the test: CI runs them with --quick.
        let is_a_child = |row: &Row| row.name.starts_with("open-") || row.name.starts_with("memory");
        for row in all().into_iter().filter(|row| !is_a_child(row) && !needs_quipu(row)) {
            let dir = tempfile::tempdir().unwrap();
            measure(&row, &Scene { dir: dir.path().to_owned(), quick: true }).unwrap();
        }
    }
}
