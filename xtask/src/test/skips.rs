//! Which skips a machine may excuse. Any other reason is a test that should have run.

use std::path::Path;

use crate::command::{find, is_root};

/// A reason as tests print it, and whether it holds here.
type Excuse = (&'static str, fn() -> bool);

const EXCUSES: &[Excuse] = &[
    ("needs root", || !is_root()),
    ("needs Go", || find("go").is_none()),
    // It is no part of this checkout, and nothing here can build it; `--ztunnel` names one.
    ("no ztunnel is given", || true),
    ("no MPTCP in this kernel", || !Path::new("/proc/sys/net/mptcp/enabled").exists()),
];

/// Whether a test that was skipped for this reason could not have run here.
pub fn excused(why: &str) -> bool {
    EXCUSES.iter().any(|(reason, holds)| why == *reason && holds())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_reason_that_holds_here_excuses_a_skip() {
        assert!(!excused("not in the mood") && !excused("#[ignore]") && !excused(""));
        assert!(!excused("needs helm"), "it is built with the cluster's programs");
        assert_eq!(excused("needs root"), !is_root());
    }
}
