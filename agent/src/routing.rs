//! What a pod's namespace needs so that the application sees the client's own address: answers to
//! the agent's connections carry its mark (`tcp_fwmark_accept`), and marked packets are delivered
//! locally (one rule and one route, per family). No netfilter.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use mesh_net::dial::MARK;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        route::{RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute},
    },
};

use crate::{netns, sysctl};

/// The routing table of the mesh inside a pod (Istio's number).
const TABLE: u32 = 100;
/// Priority of the rule: before the main table.
const PRIORITY: u32 = 32764;
/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;
/// Settings of a pod's namespace: name below `/proc/sys`, value in the mesh, value without (the kernel's default).
///
/// Captured connections all go to one address and port, so a client that closes first soon has its
/// ports in TIME-WAIT; with timestamps they can be used again after a second (RFC 6191).
const SETTINGS: [(&str, &str, &str); 2] =
    [("net/ipv4/tcp_fwmark_accept", "1", "0"), ("net/ipv4/tcp_tw_reuse", "1", "2")];

/// Sets a pod's routing up; what is there already stays. `v6` asks for IPv6 too.
///
/// # Errors
/// The kernel refuses.
pub async fn set_up(netns: &File, v6: bool) -> io::Result<()> {
    netns::within(netns, || sysctl::write(SETTINGS.iter().map(|(name, inside, _)| (*name, *inside))))?;
    let handle = open(netns)?;
    for family in families(v6) {
        present(add_rule(&handle, family).await)?;
        present(add_route(&handle, family).await)?;
    }
    Ok(())
}

/// Removes what [`set_up`] made; what is gone already is no error.
///
/// # Errors
/// The kernel refuses.
pub async fn remove(netns: &File, v6: bool) -> io::Result<()> {
    let handle = open(netns)?;
    for family in families(v6) {
        absent(delete_rule(&handle, family).await)?;
        absent(delete_route(&handle, family).await)?;
    }
    netns::within(netns, || sysctl::write(SETTINGS.iter().map(|(name, _, outside)| (*name, *outside))))
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

fn families(v6: bool) -> impl Iterator<Item = Family> {
    [Family::V4].into_iter().chain(v6.then_some(Family::V6))
}

/// A netlink socket of the namespace; its driver ends with the last handle.
fn open(netns: &File) -> io::Result<Handle> {
    // The socket registers with the runtime that this thread belongs to, in the other thread.
    let runtime = tokio::runtime::Handle::current();
    let (connection, handle, _) = netns::within(netns, || {
        let _guard = runtime.enter();
        rtnetlink::new_connection()
    })?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn add_rule(handle: &Handle, family: Family) -> Result<(), rtnetlink::Error> {
    let rule =
        handle.rule().add().table_id(TABLE).priority(PRIORITY).fw_mark(MARK).action(RuleAction::ToTable);
    match family {
        Family::V4 => rule.v4().execute().await,
        Family::V6 => rule.v6().execute().await,
    }
}

async fn delete_rule(handle: &Handle, family: Family) -> Result<(), rtnetlink::Error> {
    let rule =
        handle.rule().add().table_id(TABLE).priority(PRIORITY).fw_mark(MARK).action(RuleAction::ToTable);
    let mut message = match family {
        Family::V4 => rule.v4().message_mut().clone(),
        Family::V6 => rule.v6().message_mut().clone(),
    };
    message.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
    handle.rule().del(message).execute().await
}

async fn add_route(handle: &Handle, family: Family) -> Result<(), rtnetlink::Error> {
    handle.route().add(route(family)).execute().await
}

async fn delete_route(handle: &Handle, family: Family) -> Result<(), rtnetlink::Error> {
    handle.route().del(route(family)).execute().await
}

fn route(family: Family) -> rtnetlink::packet_route::route::RouteMessage {
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .output_interface(LOOPBACK)
            .table_id(TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .output_interface(LOOPBACK)
            .table_id(TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .build(),
    }
}

fn present(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    tolerate(result, &[libc::EEXIST])
}

fn absent(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    tolerate(result, &[libc::ENOENT, libc::ESRCH])
}

fn tolerate(result: Result<(), rtnetlink::Error>, codes: &[i32]) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(message)) => {
            let error = message.to_io();
            match error.raw_os_error() {
                Some(code) if codes.contains(&code) => Ok(()),
                _ => Err(error),
            }
        }
        Err(error) => Err(io::Error::other(error)),
    }
}
