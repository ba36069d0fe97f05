//! The control plane that is measured.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use harness::{cluster::Cluster, janitor, process::Process, shell, wait};
use mesh_net::xds::ControlEndpoint;

use super::fleet::CLUSTER;
use crate::once::resident;

/// Namespace of the control plane.
pub const SYSTEM: &str = "culvert-system";
/// Name of its log.
pub const NAME: &str = "control";
/// How long it may take to read a whole mesh, on a busy machine.
const READY: Duration = Duration::from_secs(120);
/// Its port: nobody else has it in the cluster's own network.
const PORT: u16 = 15012;
/// Ticks of the processor's clock in a second, as the kernel counts for user space.
const TICKS: f64 = 100.0;

/// See the module's description.
pub struct Program {
    /// Time from its start until it said that it is ready.
    pub ready_after: Duration,
    process: Process,
    socket: PathBuf,
    roots: PathBuf,
    tokens: PathBuf,
}

/// Compilations so far.
#[derive(Debug, Clone, Copy)]
pub struct Compilations {
    /// How many.
    pub count: f64,
    /// How long all of them took.
    pub seconds: f64,
}

impl Program {
    /// Starts it as the cluster's admin and waits until it is ready. A node's agent has its token.
    pub fn start(cluster: &Cluster, folder: &Path, clients: u32) -> Result<Self> {
        let tokens = cluster.root.join("tokens");
        fs::create_dir_all(&tokens)?;
        let mut known = String::new();
        for n in 0..clients {
            fs::write(tokens.join(n.to_string()), format!("token-{n}"))?;
            writeln!(known, "token-{n}: node-{n}")?;
        }
        let file = cluster.root.join("tokens.yaml");
        fs::write(&file, known)?;
        let sockets = janitor::sockets(&cluster.id);
        fs::create_dir_all(&sockets)?;
        let socket = sockets.join("control.sock");
        let program = folder.join("culvert-control");
        let mut command = cluster.place_of(NAME).command(&program.to_string_lossy())?;
        command.args(["--kubernetes", "--kubeconfig"]).arg(cluster.kubeconfig());
        command.args(["--pod-namespace", SYSTEM, "--pod-name", NAME, "--admin", "127.0.0.1:0"]);
        command.arg(format!("--listen=127.0.0.1:{PORT}")).arg("--admin-socket").arg(&socket);
        command.arg("--tokens").arg(&file).arg("--state-dir").arg(cluster.root.join("state/control"));
        let began = Instant::now();
        let process = Process::spawn(&mut command, &cluster.log_file(NAME))?;
        let mut program = Self {
            ready_after: Duration::ZERO,
            process,
            socket,
            roots: cluster.root.join("roots.pem"),
            tokens,
        };
        let ready = || program.get("/readyz").is_ok_and(|text| text == "ready\n").then_some(());
        wait::until(READY, "control to be ready", ready).with_context(|| cluster.tail(NAME))?;
        program.ready_after = began.elapsed();
        let words = ["-n", SYSTEM, "configmap", "culvert-ca-root-cert"];
        let bundle = cluster.wait_for(READY, "the trust bundle", &words, |map| {
            map["data"]["root-cert.pem"].as_str().map(String::from)
        })?;
        fs::write(&program.roots, bundle)?;
        Ok(program)
    }

    /// How a client reaches it.
    pub fn endpoint(&self, client: u32) -> ControlEndpoint {
        ControlEndpoint {
            url: format!("https://127.0.0.1:{PORT}"),
            roots: Some(self.roots.clone()),
            server_name: None,
            token: Some(self.tokens.join(client.to_string())),
            cluster: CLUSTER.into(),
        }
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "10", "--unix-socket"]).arg(&self.socket);
        shell::output(curl.arg(format!("http://control{path}")))
    }

    /// Compilations so far, by its own count.
    pub fn compilations(&self) -> Result<Compilations> {
        let text = self.get("/metrics")?;
        let figure = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let figure = line.and_then(|figure| figure.trim().parse().ok());
            figure.with_context(|| format!("control has no metric {name}"))
        };
        Ok(Compilations {
            count: figure("culvert_control_compilations_total")?,
            seconds: figure("culvert_control_compilation_seconds_sum")?,
        })
    }

    /// Memory in use, MiB.
    pub fn resident(&self) -> Result<f64> {
        Ok(resident(self.process.pid())? / 1_048_576.0)
    }

    /// The most memory that it ever used, MiB.
    pub fn peak(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: f64 = line.split_whitespace().next().context("no figure")?.parse()?;
        Ok(kib / 1024.0)
    }

    /// Processor time that it used so far, seconds.
    pub fn cpu(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.process.pid()))?;
        let after = text.rsplit_once(") ").context("no name in stat")?.1;
        let words: Vec<f64> =
            after.split(' ').skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
        Ok(words.iter().sum::<f64>() / TICKS)
    }
}
