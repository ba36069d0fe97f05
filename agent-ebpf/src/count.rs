//! Counters per site: what happened must be visible even when nothing was logged.

use crate::maps::COUNTERS;

#[inline(always)]
pub fn add(site: u32) {
    if let Some(slot) = COUNTERS.get_ptr_mut(site) {
        // SAFETY: the slot belongs to this CPU and BPF programs are not preempted by each other here;
        // a lost increment would only make a sample wrong.
        unsafe { *slot += 1 };
    }
}
