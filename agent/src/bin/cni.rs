//! The CNI plugin's binary: reads the environment and standard input, writes standard output.
#![forbid(unsafe_code)]

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use agent::cni::{plugin, report::Failure, request::Request};

/// Largest configuration that is read, in bytes.
const LARGEST: u64 = 4 << 20;

#[allow(clippy::disallowed_methods, reason = "the environment is how a runtime calls a plugin")]
fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().take(LARGEST).read_to_end(&mut input);
    let env = |name: &str| std::env::var(name).ok();
    let done = read
        .map_err(|error| Failure::decoding(format!("standard input: {error}")))
        .and_then(|_| Request::read(env, &input))
        .and_then(|request| plugin::run(&request));
    let (text, code) = match done {
        Ok(None) => (None, ExitCode::SUCCESS),
        Ok(Some(result)) => (Some(result), ExitCode::SUCCESS),
        Err(failure) => {
            let version = serde_json::from_slice::<serde_json::Value>(&input).unwrap_or_default();
            (Some(failure.show(version["cniVersion"].as_str().unwrap_or_default())), ExitCode::FAILURE)
        }
    };
    match text.map(|text| writeln!(std::io::stdout(), "{text}")) {
        Some(Err(_)) => ExitCode::FAILURE,
        _ => code,
    }
}
