//! What a test needs of the machine: it is skipped aloud, or fails when skipping is not allowed.

use std::{path::PathBuf, process::Command};

use crate::{cluster::programs::Programs, shell};

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

/// Whether a cluster can be started here; the reason not to is said aloud.
///
/// # Panics
/// It cannot, and `CULVERT_REQUIRE` lists `cluster`.
#[allow(clippy::disallowed_methods, reason = "the tests' one reader of the environment")]
pub fn cluster(name: &str) -> bool {
    if !root(name) {
        return false;
    }
    let there = Programs::find().is_some();
    let required = std::env::var("CULVERT_REQUIRE").unwrap_or_default().contains("cluster");
    assert!(there || !required, "{name} must run: CULVERT_REQUIRE lists cluster");
    if !there {
        println!("SKIP {name}: {}", cluster_excuse());
    }
    there
}

/// Helm, which comes with the cluster's programs or is the machine's own. That there is none is said aloud;
/// `cargo xtask test` builds it and takes no such skip.
pub fn helm(name: &str) -> Option<PathBuf> {
    if !cluster(name) {
        return None;
    }
    let helm = Programs::find()?.path("helm");
    let there = helm.is_absolute() || shell::output(Command::new(&helm).arg("version")).is_ok();
    if !there {
        println!("SKIP {name}: needs helm");
    }
    there.then_some(helm)
}

/// Why no cluster can be started here.
pub fn cluster_excuse() -> &'static str {
    let root = shell::output(Command::new("id").arg("-u")).is_ok_and(|text| text.trim() == "0");
    if root { "needs Go" } else { "needs root" }
}
