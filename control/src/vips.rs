//! Virtual addresses for services that have none: deterministic, and kept once given.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use twox_hash::XxHash64;

use crate::disk::Place;

/// The allocator.
#[derive(Debug)]
pub struct Vips {
    range: Ipv4Net,
    place: Place,
    given: BTreeMap<String, Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
    reserved: BTreeSet<IpAddr>,
    /// Who asked in this round and in the one before: addresses of others may be given again.
    asked: BTreeSet<String>,
    asked_before: BTreeSet<String>,
    unsaved: bool,
}

impl Vips {
    /// Addresses from `range`; what `place` remembers is kept.
    pub fn new(range: Ipv4Net, place: Place) -> Self {
        let mut given: BTreeMap<String, Ipv4Addr> = place.load();
        given.retain(|_, ip| range.contains(&*ip));
        Self {
            range,
            place,
            used: given.values().copied().collect(),
            given,
            reserved: BTreeSet::new(),
            asked: BTreeSet::new(),
            asked_before: BTreeSet::new(),
            unsaved: false,
        }
    }

    /// Begins a round: addresses that objects give themselves are not given to others.
    pub fn reserve(&mut self, taken: impl Iterator<Item = IpAddr>) {
        self.reserved = taken.collect();
        self.asked_before = std::mem::take(&mut self.asked);
    }

    /// The address of a service; none when the range is full of services that exist.
    pub fn get(&mut self, service: &str) -> Option<IpAddr> {
        self.asked.insert(service.into());
        if let Some(known) = self.given.get(service) {
            return Some(IpAddr::V4(*known));
        }
        let free = self.free(service).or_else(|| {
            self.forget_the_gone();
            self.free(service)
        })?;
        self.given.insert(service.into(), free);
        self.used.insert(free);
        self.unsaved = true;
        Some(IpAddr::V4(free))
    }

    /// The first free address from a place that depends on the name only.
    fn free(&self, service: &str) -> Option<Ipv4Addr> {
        let size = 1_u64 << (32 - self.range.prefix_len());
        let usable = size.saturating_sub(2).max(1);
        if self.used.len() as u64 >= usable {
            return None;
        }
        let start = XxHash64::oneshot(0, service.as_bytes()) % usable;
        let base = u64::from(u32::from(self.range.network()));
        (0..usable)
            .filter_map(|step| u32::try_from(base + 1 + (start + step) % usable).ok().map(Ipv4Addr::from))
            .find(|ip| !self.used.contains(ip) && !self.reserved.contains(&IpAddr::V4(*ip)))
    }

    fn forget_the_gone(&mut self) {
        let here = |name: &String| self.asked.contains(name) || self.asked_before.contains(name);
        self.given.retain(|name, _| here(name));
        self.used = self.given.values().copied().collect();
        self.unsaved = true;
    }

    /// Writes what was given since the last time.
    pub fn save(&mut self) {
        if self.unsaved {
            self.place.save(&self.given, "virtual addresses");
        }
        self.unsaved = false;
    }

    /// Takes over what another replica gave since: its addresses count, and who had one of them here gets
    /// another one.
    pub fn adopt(&mut self) {
        let theirs: BTreeMap<String, Ipv4Addr> = self.place.load();
        let taken: BTreeSet<Ipv4Addr> = theirs.values().copied().collect();
        self.given.retain(|name, ip| !theirs.contains_key(name) && !taken.contains(ip));
        // What is here alone has to be kept as well.
        self.unsaved |= !self.given.is_empty();
        self.given.extend(theirs.into_iter().filter(|(_, ip)| self.range.contains(ip)));
        self.used = self.given.values().copied().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_range_gives_addresses_of_services_that_are_gone_again() {
        let mut vips = Vips::new("10.0.0.0/30".parse().unwrap(), Place::Nowhere);
        let round = |vips: &mut Vips, names: [&str; 2]| {
            vips.reserve(std::iter::empty());
            names.map(|name| vips.get(name))
        };
        let [a, b] = round(&mut vips, ["a", "b"]);
        assert!(a.is_some() && b.is_some() && a != b);
        assert_eq!(round(&mut vips, ["a", "c"]), [a, None], "b was there a moment ago");
        assert_eq!(round(&mut vips, ["a", "c"]), [a, b]);
    }

    #[test]
    fn two_replicas_agree_on_the_addresses_of_the_one_that_keeps_them() {
        let shelf = crate::shelf::Shelf::new();
        let replica = || Vips::new("10.0.0.0/29".parse().unwrap(), Place::Shared(shelf.clone(), "vips"));
        let (mut first, mut second) = (replica(), replica());
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for name in ["a", "b", "c"] {
            here.push(first.get(name).unwrap());
        }
        // The other one heard of them in another order, and of one more.
        for name in ["d", "c", "b", "a"] {
            second.get(name);
        }
        first.save();
        second.adopt();
        for name in ["a", "b", "c"] {
            there.push(second.get(name).unwrap());
        }
        assert_eq!(here, there);
        assert!(!here.contains(&second.get("d").unwrap()));
    }
}
