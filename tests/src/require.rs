//! What a test needs of the machine: it is skipped aloud, or fails when skipping is not allowed.

use std::process::Command;

use crate::shell;

/// Whether namespaces can be made here.
///
/// # Panics
/// They cannot, and `CULVERT_REQUIRE` lists `root`.
#[allow(clippy::disallowed_methods, reason = "the tests' one reader of the environment")]
pub fn root(name: &str) -> bool {
    let root = shell::output(Command::new("id").arg("-u")).is_ok_and(|text| text.trim() == "0");
    let required = std::env::var("CULVERT_REQUIRE").unwrap_or_default().contains("root");
    assert!(root || !required, "{name} must run: CULVERT_REQUIRE lists root");
    if !root {
        println!("SKIP {name}: needs root");
    }
    root
}
