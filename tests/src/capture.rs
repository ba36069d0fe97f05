//! Packets on the underlay: what an eavesdropper between the nodes sees.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::{
    net,
    process::{Place, Process},
    wait,
};

/// Where Linux begins when it chooses a client's port.
const FIRST_CLIENT_PORT: u16 = 32_768;

/// Port of the packet that marks the end of a capture; nothing else uses it.
const MARK: u16 = 9;

/// A running capture of every packet of one interface.
pub struct Capture {
    process: Process,
    place: Place,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture; returns once tcpdump listens.
    pub fn start(place: &Place, interface: &str, file: PathBuf) -> Result<Self> {
        let log = file.with_extension("log");
        let mut command = place.command("tcpdump")?;
        command
            .args(["-i", interface, "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-w"])
            .arg(&file)
            .arg("tcp");
        let process = Process::spawn(&mut command, &log)?;
        wait::until(Duration::from_secs(10), "tcpdump to listen", || {
            process.log().contains("listening on").then_some(())
        })?;
        Ok(Self { process, place: place.clone(), file })
    }

    /// Stops and returns what was seen.
    ///
    /// What tcpdump has not read when it ends is lost, and a capture that lost packets proves nothing:
    /// so a packet is sent after all others, and awaited in the file.
    pub fn stop(mut self) -> Result<Seen> {
        let url = format!("http://{}:{MARK}/", net::node_address(0));
        wait::until(Duration::from_secs(10), "tcpdump to catch up", || {
            let mut curl = self.place.command("curl").ok()?;
            // It is refused: nobody listens there.
            let _ = crate::shell::output(curl.args(["-s", "--max-time", "1", &url]));
            (!self.read(&[&format!("tcp port {MARK}")]).ok()?.is_empty()).then_some(())
        })?;
        self.process.terminate(Duration::from_secs(5));
        let raw = fs::read(&self.file).context("cannot read the capture")?;
        Ok(Seen { raw, text: self.read(&[&format!("not tcp port {MARK}")])? })
    }

    /// A line per packet.
    fn read(&self, filter: &[&str]) -> Result<String> {
        let mut tcpdump = Command::new("tcpdump");
        crate::shell::output(tcpdump.args(["-n", "-q", "-r"]).arg(&self.file).args(filter))
    }
}

/// A finished capture.
pub struct Seen {
    raw: Vec<u8>,
    text: String,
}

impl Seen {
    /// Whether a text is anywhere in the packets' bytes.
    pub fn contains(&self, text: &str) -> bool {
        self.raw.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Whether TLS application data is among the bytes.
    pub fn contains_tls(&self) -> bool {
        self.raw.windows(3).any(|window| window == [0x17, 3, 3])
    }

    /// TCP ports that packets went to or came from, but for those that clients were given.
    pub fn ports(&self) -> BTreeSet<u16> {
        let port = |end: &str| end.trim_end_matches(':').rsplit('.').next()?.parse::<u16>().ok();
        let ends = self.text.lines().filter_map(|line| {
            let (from, rest) = line.split_once(" > ")?;
            Some([from.rsplit(' ').next()?, rest.split(' ').next()?])
        });
        ends.flatten().filter_map(port).filter(|port| *port < FIRST_CLIENT_PORT).collect()
    }

    /// Number of packets.
    pub fn packets(&self) -> usize {
        self.text.lines().count()
    }

    /// Number of packets from or to a TCP port.
    pub fn packets_of_port(&self, port: u16) -> usize {
        let (from, to) = (format!(".{port} >"), format!(".{port}:"));
        self.text.lines().filter(|line| line.contains(&from) || line.contains(&to)).count()
    }
}
