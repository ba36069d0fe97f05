//! Keeps the kernel's table of mesh ranges what the snapshot says: project → diff → sync.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use mesh_core::{
    projection::{MeshRanges, mesh_ranges},
    snapshot::Snapshot,
};
use tokio::sync::watch;

use crate::bpf::{Bpf, BpfError};

/// Changes within this time are projected together.
const COALESCE: Duration = Duration::from_millis(50);

/// Follows the snapshots until their sender is gone.
pub async fn run(bpf: Arc<Bpf>, mut snapshots: watch::Receiver<Arc<Snapshot>>, configured: Vec<IpNet>) {
    let mut table = Table::default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if let Err(error) = table.make(&bpf, mesh_ranges(&snapshot, &configured)) {
            tracing::error!(%error, "mesh ranges are not in the kernel; nothing bypasses the agent");
        }
        if snapshots.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(COALESCE).await;
    }
}

/// What is known of the kernel's table: nothing at first, because an earlier agent may have filled it, and
/// after a failure, which may have changed a part of it.
#[derive(Debug, Default)]
pub struct Table(Option<MeshRanges>);

impl Table {
    /// Makes the kernel's table equal to what is wanted. Bypass is on only while both are known to be.
    ///
    /// # Errors
    /// The table is full or cannot be read; nothing bypasses the agent then.
    pub fn make(&mut self, bpf: &Bpf, wanted: MeshRanges) -> Result<(), BpfError> {
        let held = match self.0.take() {
            Some(held) if held.ranges == wanted.ranges && held.complete == wanted.complete => {
                self.0 = Some(held);
                return Ok(());
            }
            Some(held) => held.ranges,
            None => pinned(bpf)?,
        };
        let (add, remove) = difference(&held, &wanted.ranges);
        // The epoch wraps: it only has to differ from the one before.
        bpf.maps.sync_mesh(&add, &remove, wanted.complete, wanted.epoch as u32)?;
        self.0 = Some(wanted);
        Ok(())
    }
}

/// The ranges that an earlier agent left in the kernel. Bypass is off from here on.
fn pinned(bpf: &Bpf) -> Result<Vec<IpNet>, BpfError> {
    bpf.maps.sync_mesh(&[], &[], false, 0)?;
    let ranges = bpf.maps.mesh()?;
    let mut held: Vec<IpNet> =
        ranges.into_iter().filter_map(|(ip, length)| IpNet::new(ip, length).ok()).collect();
    held.sort();
    Ok(held)
}

type Range = (IpAddr, u8);

/// What to add and what to remove; both lists are sorted.
fn difference(held: &[IpNet], wanted: &[IpNet]) -> (Vec<Range>, Vec<Range>) {
    let only = |these: &[IpNet], those: &[IpNet]| {
        let missing = these.iter().filter(|range| those.binary_search(range).is_err());
        missing.map(|range| (range.addr(), range.prefix_len())).collect()
    };
    (only(wanted, held), only(held, wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_ranges_adds_what_is_new_and_removes_what_is_gone() {
        let parse = |list: &[&str]| list.iter().map(|r| r.parse().unwrap()).collect::<Vec<IpNet>>();
        let (add, remove) =
            difference(&parse(&["10.0.0.0/8", "10.1.0.0/16"]), &parse(&["10.0.0.0/8", "fd00::/8"]));
        assert_eq!(add, [("fd00::".parse().unwrap(), 8)]);
        assert_eq!(remove, [("10.1.0.0".parse().unwrap(), 16)]);
    }
}
