//! A running control plane and plain clients of it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use control::{ca::Given, compile::Options, server};
use mesh_net::{
    api::envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    xds::ControlEndpoint,
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

/// A pod that is not enrolled.
pub const POD: &str = "kind: Pod\nmetadata:\n  name: client-1\n  namespace: default\nspec: {nodeName: node-1, \
                       serviceAccountName: client}\nstatus: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}\n";

/// Longest wait for something to be seen.
const DEADLINE: Duration = Duration::from_secs(30);

/// A control plane in this process.
pub struct Running {
    pub folder: tempfile::TempDir,
    pub task: JoinHandle<anyhow::Result<()>>,
    url: String,
    admin: std::net::SocketAddr,
}

impl Running {
    /// Starts with these files in the cluster folder.
    pub async fn start(files: &[(&str, &str)]) -> Self {
        Self::start_with(files, None).await
    }

    /// The same with a given intermediate CA.
    pub async fn start_with(files: &[(&str, &str)], ca: Option<Given>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("cluster")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join("cluster").join(name), text).unwrap();
        }
        Self::begin(folder, ca).await
    }

    /// Starts in a folder whose `cluster` may not be there.
    pub async fn start_in(folder: tempfile::TempDir) -> Self {
        Self::begin(folder, None).await
    }

    async fn begin(folder: tempfile::TempDir, ca: Option<Given>) -> Self {
        let path = folder.path();
        std::fs::write(path.join("tokens.yaml"), "one: node-1\ntwo: node-2\nway: default/waypoint\n")
            .unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let config = server::Config {
            folder: Some(path.join("cluster")),
            kubernetes: None,
            state: path.join("state"),
            tokens: Some(path.join("tokens.yaml")),
            listen: any,
            admin: any,
            admin_socket: Some(path.join("run/control.sock")),
            names: Vec::new(),
            service_cidr: control::SERVICE_CIDR,
            ca,
            options: Options::default(),
        };
        let (send, bound) = oneshot::channel();
        let task =
            tokio::spawn(server::run_with(config, |listen, admin| send.send((listen, admin)).unwrap()));
        let (listen, admin) = bound.await.unwrap();
        Self { url: format!("https://{listen}"), admin, folder, task }
    }

    /// Ends it and leaves its folders.
    pub async fn stop(self) -> tempfile::TempDir {
        self.task.abort();
        let _ = self.task.await;
        self.folder
    }

    pub fn cluster(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/control.sock")
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.cluster().join(name), text).unwrap();
    }

    pub fn endpoint(&self, token: &str) -> ControlEndpoint {
        let file: PathBuf = self.folder.path().join(format!("token-{token}"));
        std::fs::write(&file, token).unwrap();
        ControlEndpoint {
            url: self.url.clone(),
            roots: Some(self.folder.path().join("state/root-cert.pem")),
            server_name: None,
            token: Some(file),
            cluster: "Kubernetes".into(),
        }
    }

    /// Status and body of an admin page, over TCP.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(TcpStream::connect(self.admin).await.unwrap(), path).await
    }

    /// The same over the Unix socket.
    pub async fn get_local(&self, path: &str) -> (u16, String) {
        get(UnixStream::connect(self.socket()).await.unwrap(), path).await
    }

    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await.1).unwrap()
    }

    /// The value of a metric's line.
    pub async fn metric(&self, line: &str) -> Option<f64> {
        let text = self.get("/metrics").await.1;
        text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
    }

    /// Waits until a page says so.
    pub async fn until(&self, path: &str, says: impl Fn(u16, &str) -> bool) {
        let start = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        loop {
            let (status, body) = self.get(path).await;
            if says(status, &body) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{path} still says {status} {body}");
            tick.tick().await;
        }
    }

    pub async fn stream(&self, token: &str) -> Talk {
        self.try_stream(Some(token)).await.unwrap()
    }

    /// A stream with a token or without one.
    pub async fn try_stream(&self, token: Option<&str>) -> Result<Talk, Status> {
        let endpoint = self.endpoint(token.unwrap_or("none"));
        let mut client = AggregatedDiscoveryServiceClient::new(endpoint.connect().await.unwrap());
        let (say, requests) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(requests));
        if token.is_some() {
            endpoint.authorize(&mut request).unwrap();
        }
        let responses = client.delta_aggregated_resources(request).await?.into_inner();
        Ok(Talk { say, responses })
    }
}

/// One delta stream, by hand.
pub struct Talk {
    pub say: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
}

impl Talk {
    pub async fn say(&self, request: DeltaDiscoveryRequest) {
        self.say.send(request).await.unwrap();
    }

    pub async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        tokio::time::timeout(DEADLINE, self.responses.message()).await.unwrap()
    }

    /// Opens a type, holding these; returns the answer.
    pub async fn open(&mut self, type_url: &str, held: &[(&str, &str)]) -> DeltaDiscoveryResponse {
        let held = held.iter().map(|(name, version)| (name.to_string(), version.to_string()));
        self.say(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            initial_resource_versions: held.collect(),
            ..Default::default()
        })
        .await;
        self.next().await.unwrap().unwrap()
    }

    /// Accepts a response, or refuses it with a reason.
    pub async fn answer(&self, response: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        let error_detail = refusal.map(|message| mesh_net::api::google::rpc::Status {
            message: message.into(),
            ..Default::default()
        });
        self.say(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        })
        .await;
    }
}

pub fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}
