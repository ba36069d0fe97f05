//! `abi.txt` lists what pinned maps may hold, so that a change of it is seen in review.
#![allow(clippy::unwrap_used, reason = "a test panics, so that the line number survives")]

use std::{fmt::Write, fs, mem::offset_of, path::Path};

use agent_common::{
    ABI_VERSION,
    event::{FlowEvent, SITES},
    maps::{Destination, FlowKey, ListenerKey, MAPS, NodeConfig, PodEntry, ProbeKey, SockState},
};

macro_rules! layout {
    ($out:expr, $type:ty, $($field:ident),+) => {
        writeln!($out, "{} size={} align={}", stringify!($type), size_of::<$type>(), align_of::<$type>()).unwrap();
        $(writeln!($out, "  {}@{}", stringify!($field), offset_of!($type, $field)).unwrap();)+
    };
}

fn listing() -> String {
    let mut out = format!(
        "# Generated: CULVERT_WRITE_ABI=1 cargo test -p agent-common --test abi\nversion {ABI_VERSION}\n"
    );
    for (name, capacity) in MAPS {
        writeln!(out, "map {name} capacity={capacity}").unwrap();
    }
    layout!(out, PodEntry, v4, v6, state, epoch);
    layout!(out, Destination, addr, port, pad);
    layout!(out, FlowKey, netns, addr, port, pad);
    layout!(out, ProbeKey, src, dst, src_port, dst_port);
    layout!(out, ListenerKey, netns, kind, pad);
    layout!(out, NodeConfig, host_netns, ranges_complete, epoch);
    layout!(out, SockState, start_ns, connect_us, leg);
    layout!(out, FlowEvent, netns, bytes_sent, bytes_received, local, remote, local_port, remote_port);
    layout!(out, FlowEvent, srtt_us, retransmits, connect_us, leg, pad);
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
    for (name, capacity) in MAPS {
        assert!(name.len() <= 15 && *capacity > 0, "{name}");
    }
}
