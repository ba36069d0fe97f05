//! Virtual addresses for services that have none: deterministic, and kept once given.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use ipnet::Ipv4Net;
use twox_hash::XxHash64;

use crate::disk;

/// The allocator.
#[derive(Debug)]
pub struct Vips {
    range: Ipv4Net,
    file: Option<PathBuf>,
    given: BTreeMap<String, Ipv4Addr>,
    reserved: BTreeSet<IpAddr>,
}

impl Vips {
    /// Addresses from `range`; what `file` remembers is kept.
    pub fn new(range: Ipv4Net, file: Option<PathBuf>) -> Self {
        let given = file.as_deref().map(disk::load).unwrap_or_default();
        Self { range, file, given, reserved: BTreeSet::new() }
    }

    /// Addresses that objects give themselves.
    pub fn reserve(&mut self, taken: impl Iterator<Item = IpAddr>) {
        self.reserved = taken.collect();
    }

    /// The address of a service; none when the range is full.
    pub fn get(&mut self, service: &str) -> Option<IpAddr> {
        if let Some(known) = self.given.get(service).filter(|ip| self.range.contains(*ip)) {
            return Some(IpAddr::V4(*known));
        }
        let size = 1_u64 << (32 - self.range.prefix_len());
        let usable = size.saturating_sub(2).max(1);
        let start = XxHash64::oneshot(0, service.as_bytes()) % usable;
        let base = u64::from(u32::from(self.range.network()));
        let used: BTreeSet<Ipv4Addr> = self.given.values().copied().collect();
        let free = (0..usable)
            .filter_map(|step| u32::try_from(base + 1 + (start + step) % usable).ok().map(Ipv4Addr::from))
            .find(|ip| !used.contains(ip) && !self.reserved.contains(&IpAddr::V4(*ip)))?;
        self.given.insert(service.into(), free);
        self.save();
        Some(IpAddr::V4(free))
    }

    fn save(&self) {
        if let Some(file) = &self.file {
            disk::save(file, &self.given, "virtual addresses");
        }
    }
}
