//! Figures of a run: medians, ratios, a table and JSON.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use harness::load::median;
use serde_json::{Value, json};

/// Raw figures by measurement and peer, in the order in which they first came.
#[derive(Default)]
pub struct Results {
    order: Vec<String>,
    peers: Vec<String>,
    raw: BTreeMap<(String, String), Vec<f64>>,
}

impl Results {
    /// Adds one round's figure.
    pub fn add(&mut self, what: &str, peer: &str, figure: f64) {
        if !self.order.iter().any(|known| known == what) {
            self.order.push(what.to_string());
        }
        if !self.peers.iter().any(|known| known == peer) {
            self.peers.push(peer.to_string());
        }
        self.raw.entry((what.to_string(), peer.to_string())).or_default().push(figure);
    }

    fn median(&self, what: &str, peer: &str) -> Option<f64> {
        self.raw.get(&(what.to_string(), peer.to_string())).map(|figures| median(figures))
    }

    /// The table, and Culvert's ratio to ztunnel or Envoy where both ran.
    pub fn print(&self) {
        print!("{:<36}", "median of the rounds");
        self.peers.iter().for_each(|peer| print!("{peer:>14}"));
        println!("{:>18}", "culvert/peer");
        for what in &self.order {
            print!("{what:<36}");
            self.peers.iter().for_each(|peer| match self.median(what, peer) {
                Some(figure) => print!("{figure:>14.3}"),
                None => print!("{:>14}", "-"),
            });
            println!("{:>18}", self.ratio(what).map_or("-".to_string(), |ratio| format!("{ratio:.2}")));
        }
    }

    fn ratio(&self, what: &str) -> Option<f64> {
        let theirs = self.median(what, "ztunnel").or(self.median(what, "envoy"))?;
        let ours = self.median(what, "culvert")?;
        (ours > 0.0 && theirs > 0.0).then(|| ours / theirs)
    }

    /// Medians, ratios and raw figures.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .order
            .iter()
            .map(|what| {
                let peers: BTreeMap<&String, Value> = self
                    .peers
                    .iter()
                    .map(|peer| {
                        let raw = self.raw.get(&(what.clone(), peer.clone()));
                        (peer, json!({"median": self.median(what, peer), "raw": raw}))
                    })
                    .collect();
                json!({"what": what, "peers": peers, "culvert_to_peer": self.ratio(what)})
            })
            .collect();
        json!({"rows": rows})
    }
}

/// Seconds that all processors of the machine were busy since boot.
pub fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat has a first line")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let idle = ticks.get(3).copied().unwrap_or(0.0) + ticks.get(4).copied().unwrap_or(0.0);
    let total: f64 = ticks.iter().take(8).sum();
    Ok((total - idle) / 100.0)
}
