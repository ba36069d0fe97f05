//! `abi.txt` lists what pinned maps may hold, so that a change of it is seen in review.
#![allow(clippy::unwrap_used, reason = "a test panics, so that the line number survives")]

use std::{fmt::Write, fs, path::Path};

use agent_common::{
    ABI_VERSION,
    event::{FlowEvent, SITES},
    maps::{Destination, FlowKey, ListenerKey, MAPS, MapSpec, NodeConfig, PodEntry, ProbeKey, SockState},
};

type Layout = (&'static str, usize, &'static [(&'static str, usize, &'static str)]);

const TYPES: [Layout; 8] = [
    PodEntry::LAYOUT,
    Destination::LAYOUT,
    FlowKey::LAYOUT,
    ProbeKey::LAYOUT,
    ListenerKey::LAYOUT,
    NodeConfig::LAYOUT,
    SockState::LAYOUT,
    FlowEvent::LAYOUT,
];

fn listing() -> String {
    let mut out = format!(
        "# Generated: CULVERT_WRITE_ABI=1 cargo test -p agent-common --test abi\nversion {ABI_VERSION}\n"
    );
    for MapSpec { name, key, value, capacity } in MAPS {
        writeln!(out, "map {name} {key} -> {value} capacity={capacity}").unwrap();
    }
    for (name, size, fields) in TYPES {
        writeln!(out, "{name} size={size}").unwrap();
        for (field, offset, kind) in fields {
            writeln!(out, "  {field}: {kind} @{offset}").unwrap();
        }
    }
    for (index, site) in SITES.iter().enumerate() {
        writeln!(out, "counter {index} {site}").unwrap();
    }
    out
}

#[test]
fn the_listing_of_the_abi_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("abi.txt");
    #[allow(clippy::disallowed_methods, reason = "the switch that writes the listing")]
    if std::env::var("CULVERT_WRITE_ABI").is_ok() {
        fs::write(&path, listing()).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(kept, listing(), "raise ABI_VERSION if a type changed, then write abi.txt again");
}

#[test]
fn map_names_fit_the_kernels_limit() {
    for MapSpec { name, capacity, .. } in MAPS {
        assert!(name.len() <= 15 && *capacity > 0, "{name}");
    }
}
