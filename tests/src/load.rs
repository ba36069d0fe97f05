//! Load and its figures: wrk for requests, iperf3 for bulk.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::world::Pod;

/// What one wrk run measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Http {
    /// Requests per second.
    pub rate: f64,
    /// Median latency, microseconds.
    pub p50_us: f64,
    /// 99th percentile, microseconds.
    pub p99_us: f64,
    /// 99.9th percentile, microseconds.
    pub p999_us: f64,
    /// Failed requests and broken connections.
    pub errors: u64,
}

/// Keep-alive or one connection per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Connections are reused.
    KeepAlive,
    /// A new connection for every request.
    NewConnections,
}

/// What wrk does not print by itself.
const SCRIPT: &str =
    "done = function(summary, latency) io.write('p99.9 ', latency:percentile(99.9), 'us\\n') end\n";

/// Runs wrk inside a pod.
pub fn http(pod: &Pod, url: &str, connections: u32, seconds: u32, mode: Mode) -> Result<Http> {
    let (connections, duration) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let mut script = tempfile::NamedTempFile::new()?;
    script.write_all(SCRIPT.as_bytes())?;
    let path = script.path().to_string_lossy().into_owned();
    let mut words = vec!["wrk", "-t1", &connections, &duration, "--latency", "-s", &path];
    if mode == Mode::NewConnections {
        words.extend(["-H", "Connection: close"]);
    }
    words.push(url);
    parse_wrk(&pod.exec(&words)?)
}

fn parse_wrk(text: &str) -> Result<Http> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let number =
        |label: &str| after(label).and_then(micros).with_context(|| format!("wrk: no {label} in {text}"));
    let rate = after("Requests/sec:").and_then(|text| text.parse().ok()).context("wrk: no rate")?;
    let digits = |line: &str| -> u64 {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok()).sum()
    };
    let errors =
        after("Socket errors:").map_or(0, digits) + after("Non-2xx or 3xx responses:").map_or(0, digits);
    let [p50_us, p99_us, p999_us] = [number("50%")?, number("99%")?, number("p99.9")?];
    Ok(Http { rate, p50_us, p99_us, p999_us, errors })
}

/// wrk's `123.00us`, `1.20ms`, `1.00s` in microseconds.
fn micros(text: &str) -> Option<f64> {
    let (digits, unit) = text.split_at(text.find(|c: char| c.is_alphabetic())?);
    let scale = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * scale)
}

/// Bulk throughput in Gb/s from `pod` to an iperf3 server; `reverse` lets the server send.
pub fn bulk(pod: &Pod, server: &str, streams: u32, seconds: u32, direction: Direction) -> Result<f64> {
    let (streams, seconds) = (streams.to_string(), seconds.to_string());
    let mut words = vec!["iperf3", "-J", "-c", server, "-P", &streams, "-t", &seconds];
    if direction == Direction::Down {
        words.push("-R");
    }
    let report: Value = serde_json::from_str(&pod.exec(&words)?)?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3: no figure")?;
    Ok(bits / 1e9)
}

/// Which side sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The client sends.
    Up,
    /// The server sends.
    Down,
}

/// The median of some figures; 0 when there is none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_output_is_read_in_microseconds_with_errors_counted() {
        let text = "  Latency Distribution\n     50%  121.00us\n     99%    1.50ms\n\
                    p99.9 2500.0us\n\
                    \x20 Socket errors: connect 1, read 2, write 0, timeout 0\n\
                    Requests/sec:   7911.50\n";
        let figures = parse_wrk(text).expect("valid output");
        assert_eq!((figures.p50_us, figures.p99_us, figures.p999_us), (121.0, 1500.0, 2500.0));
        assert_eq!(figures.errors, 3);
        assert!((figures.rate - 7911.5).abs() < 0.01);
    }

    #[test]
    fn the_median_of_nothing_is_zero() {
        assert_eq!(median(&[]).to_bits(), 0.0_f64.to_bits());
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
    }
}
