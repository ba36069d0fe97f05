//! A bound on label sets: a metric must not grow with everything that ever talked.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// What stands for a value beyond the bound.
pub const OTHER: &str = "other";

/// Label sets that exist.
#[derive(Debug, Default)]
pub struct Sets(Mutex<HashSet<Vec<String>>>);

impl Sets {
    /// The labels to use: these, or, when `most` others exist, [`OTHER`] in place of every label that
    /// `kept` does not name by its index.
    pub fn bounded(&self, labels: Vec<String>, most: usize, kept: impl Fn(usize) -> bool) -> Vec<String> {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sets.contains(&labels) {
            return labels;
        }
        if sets.len() < most {
            sets.insert(labels.clone());
            return labels;
        }
        let or_other = |(at, label)| if kept(at) { label } else { OTHER.to_owned() };
        labels.into_iter().enumerate().map(or_other).collect()
    }
}
