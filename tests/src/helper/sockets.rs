//! Runs inside a pod and hands out sockets: for each byte on standard input (`4` or `6`) one TCP
//! socket of that family goes back over the same Unix socket. A socket belongs for ever to the network
//! namespace and the cgroup that it was made in, so a test that holds it acts as the pod's application.
#![forbid(unsafe_code)]

use std::{
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::fd::AsFd,
};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sendmsg, socket,
};

fn main() -> io::Result<()> {
    let mut input = io::stdin();
    let mut family = [0];
    while input.read(&mut family)? > 0 {
        let family = if family[0] == b'6' { AddressFamily::INET6 } else { AddressFamily::INET };
        let made = socket(family, SocketType::STREAM, None)?;
        let descriptors = [made.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&input, &[IoSlice::new(b"s")], &mut control, SendFlags::empty())?;
    }
    Ok(())
}
