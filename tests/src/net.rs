//! Wiring: an underlay namespace with a bridge, node namespaces on it, pod namespaces behind nodes.

use std::{fs, net::Ipv4Addr, net::Ipv6Addr};

use anyhow::Result;

use crate::shell::{ip, ip_in, sysctl};

/// Address of the underlay's own end, where the control plane listens.
pub const UNDERLAY: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 254);

/// Address of node `index` (0-based) on the underlay.
pub fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, index + 1)
}

fn node_address6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, u16::from(index) + 1)
}

/// Addresses of pod `number` (from 2 on) of a node.
pub fn pod_addresses(node: u8, number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let six = Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, u16::from(number));
    (Ipv4Addr::new(10, 244, node, number), six)
}

/// Creates a namespace with its loopback up and strict reverse-path checks off.
pub fn namespace(name: &str) -> Result<()> {
    ip(&format!("netns add {name}"))?;
    ip_in(name, "link set lo up")?;
    sysctl(name, "net/ipv4/conf/all/rp_filter", "0")?;
    sysctl(name, "net/ipv4/conf/default/rp_filter", "0")?;
    sysctl(name, "net/ipv6/conf/default/accept_dad", "0")
}

/// Makes the bridge between nodes in a fresh namespace.
pub fn underlay(name: &str) -> Result<()> {
    namespace(name)?;
    ip_in(name, "link add br0 address 02:00:00:00:01:00 type bridge")?;
    ip_in(name, &format!("addr add {UNDERLAY}/24 dev br0"))?;
    ip_in(name, "addr add fd00:30::fe/64 dev br0 nodad")?;
    ip_in(name, "link set br0 up")?;
    Ok(())
}

/// Makes node `index` and joins it to the underlay; `nodes` is how many there will be.
pub fn node(underlay: &str, name: &str, index: u8, nodes: u8) -> Result<()> {
    machine(underlay, name, index, nodes)?;
    // A bridge without an address of its own takes the lowest of its ports', and another one when a pod
    // comes or goes: its neighbours would then talk to nobody for some seconds.
    ip_in(name, &format!("link add cni0 address 02:00:00:00:02:{index:02x} type bridge"))?;
    ip_in(name, &format!("addr add 10.244.{index}.1/24 dev cni0"))?;
    ip_in(name, &format!("addr add fd00:244:{index}::1/64 dev cni0 nodad"))?;
    ip_in(name, "link set cni0 up")?;
    Ok(())
}

/// The same without a bridge for pods: a node whose pods a CNI plugin connects.
pub fn machine(underlay: &str, name: &str, index: u8, nodes: u8) -> Result<()> {
    namespace(name)?;
    for forward in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        sysctl(name, forward, "1")?;
    }
    ip(&format!("link add eth0 netns {name} type veth peer name n{index} netns {underlay}"))?;
    ip_in(underlay, &format!("link set n{index} master br0 up"))?;
    ip_in(name, &format!("addr add {}/24 dev eth0", node_address(index)))?;
    ip_in(name, &format!("addr add {}/64 dev eth0 nodad", node_address6(index)))?;
    ip_in(name, "link set eth0 up")?;
    for other in (0..nodes).filter(|other| *other != index) {
        ip_in(name, &format!("route add 10.244.{other}.0/24 via {}", node_address(other)))?;
        ip_in(name, &format!("-6 route add fd00:244:{other}::/64 via {}", node_address6(other)))?;
    }
    ip_in(underlay, &format!("route replace 10.244.{index}.0/24 via {}", node_address(index)))?;
    ip_in(name, &format!("route add default via {UNDERLAY}"))?;
    Ok(())
}

/// Makes a pod's namespace behind a node.
pub fn pod(node: &str, name: &str, index: u8, number: u8) -> Result<()> {
    namespace(name)?;
    let (four, six) = pod_addresses(index, number);
    ip(&format!("link add eth0 netns {name} type veth peer name p{number} netns {node}"))?;
    ip_in(node, &format!("link set p{number} master cni0 up"))?;
    ip_in(name, &format!("addr add {four}/24 dev eth0"))?;
    ip_in(name, &format!("addr add {six}/64 dev eth0 nodad"))?;
    ip_in(name, "link set eth0 up")?;
    ip_in(name, &format!("route add default via 10.244.{index}.1"))?;
    ip_in(name, &format!("-6 route add default via fd00:244:{index}::1"))?;
    Ok(())
}

/// Writes the hosts file that programs started in a namespace by `ip netns exec` will see.
pub fn hosts(netns: &str, names: &[(String, String)]) -> Result<()> {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for (address, name) in names {
        text.push_str(&format!("{address} {name}\n"));
    }
    let folder = format!("/etc/netns/{netns}");
    fs::create_dir_all(&folder)?;
    fs::write(format!("{folder}/hosts"), text)?;
    Ok(())
}
