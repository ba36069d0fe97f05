//! What was measured, as a table and as JSON.

use std::{fmt, time::Duration};

use serde_json::{Map, Value, json};

use super::{churn::Outcome, fleet::Fleet};

/// Figures in the order in which they came: key, words, figure.
pub struct Report {
    title: String,
    rows: Vec<(&'static str, &'static str, f64)>,
    lost: usize,
}

impl Report {
    /// Nothing measured yet.
    pub fn of(fleet: &Fleet, clients: u32) -> Self {
        let title = format!("{fleet}, {clients} clients");
        let mut report = Self { title, rows: Vec::new(), lost: 0 };
        report.add("objects", "objects in the API server", f64::from(fleet.objects()));
        report
    }

    /// Adds a figure.
    pub fn add(&mut self, key: &'static str, words: &'static str, figure: f64) {
        self.rows.push((key, words, figure));
    }

    /// Adds a time.
    pub fn millis(&mut self, key: &'static str, words: &'static str, time: Duration) {
        self.add(key, words, time.as_secs_f64() * 1000.0);
    }

    /// Adds what became of the changes of some seconds.
    pub fn changes(&mut self, mut outcome: Outcome, wall: f64) {
        outcome.arrivals.sort();
        outcome.writes.sort();
        self.add("changes_per_s", "changes that the API server took, per s", count(&outcome.writes) / wall);
        self.add("refused", "changes that it refused", to_f64(outcome.refused));
        self.add("lost", "changes that a client never saw", to_f64(outcome.lost));
        let (arrivals, writes) = (&outcome.arrivals, &outcome.writes);
        self.millis("push_p50_ms", "from there to a client, p50, ms", part(arrivals, 0.5));
        self.millis("push_p99_ms", "from there to a client, p99, ms", part(arrivals, 0.99));
        self.millis("push_max_ms", "from there to a client, max, ms", part(arrivals, 1.0));
        self.millis("write_p50_ms", "the API server's own part, p50, ms", part(writes, 0.5));
        self.millis("write_p99_ms", "the API server's own part, p99, ms", part(writes, 0.99));
        self.lost = outcome.lost;
    }

    /// Changes that did not reach a client.
    pub fn lost(&self) -> usize {
        self.lost
    }

    /// All figures by their keys.
    pub fn json(&self) -> Value {
        let figures: Map<String, Value> =
            self.rows.iter().map(|(key, _, figure)| ((*key).to_string(), json!(figure))).collect();
        json!({"what": self.title, "figures": figures})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        self.rows.iter().try_for_each(|(_, words, figure)| writeln!(f, "{words:<44}{figure:>12.3}"))
    }
}

/// The figure that a part of sorted figures does not exceed; zero when there is none.
fn part(sorted: &[Duration], part: f64) -> Duration {
    let rank = (count(sorted) * part).ceil();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank is a small count")]
    let index = (rank as usize).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

fn count(list: &[Duration]) -> f64 {
    to_f64(list.len())
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_figures_that_were_measured() {
        let millis = |n: u64| Duration::from_millis(n);
        let sorted: Vec<_> = (1..=200).map(millis).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|p| part(&sorted, p)), [millis(100), millis(198), millis(200)]);
        assert_eq!(part(&sorted[..1], 0.99), millis(1));
        assert_eq!(part(&[], 0.5), Duration::ZERO);
    }
}
