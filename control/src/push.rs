//! Delta xDS server.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_net::{
    api::envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
    wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE, L7_POLICY_TYPE, LABELS_TYPE, ROUTES_TYPE},
};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    auth::{Caller, Tokens},
    publish::{Published, Resources},
};

/// Types in the order of pushes: what others refer to comes first.
pub const ORDER: [&str; 5] = [ADDRESS_TYPE, AUTHORIZATION_TYPE, LABELS_TYPE, ROUTES_TYPE, L7_POLICY_TYPE];

/// A client, for `/debug/clients`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClientState {
    /// Who.
    pub name: String,
    /// Node id that it says.
    pub node: String,
    /// Resources held, per type.
    pub held: BTreeMap<String, usize>,
    /// Responses sent and accepted.
    pub sent: u64,
    /// Accepted responses.
    pub acks: u64,
    /// Refused responses.
    pub nacks: u64,
    /// Reason of the last refusal per type; cleared by the next acceptance.
    pub refused: BTreeMap<String, String>,
}

/// Connected clients and totals since start.
#[derive(Debug, Default)]
pub struct Clients {
    table: Mutex<(u64, BTreeMap<u64, ClientState>)>,
}

impl Clients {
    fn with<T>(&self, f: impl FnOnce(&mut (u64, BTreeMap<u64, ClientState>)) -> T) -> T {
        f(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The table.
    pub fn list(&self) -> Vec<ClientState> {
        self.with(|(_, table)| table.values().cloned().collect())
    }

    fn add(&self, name: String) -> u64 {
        self.with(|(next, table)| {
            *next += 1;
            table.insert(*next, ClientState { name, ..ClientState::default() });
            *next
        })
    }

    fn update(&self, id: u64, f: impl FnOnce(&mut ClientState)) {
        self.with(|(_, table)| table.get_mut(&id).map(f));
    }
}

/// The service.
#[derive(Debug, Clone)]
pub struct Push {
    /// What is current.
    pub current: watch::Receiver<Arc<Published>>,
    /// Who may call.
    pub tokens: Tokens,
    /// Who is connected.
    pub clients: Arc<Clients>,
}

/// What one stream holds.
#[derive(Debug, Default)]
pub struct Session {
    types: BTreeMap<&'static str, HashMap<String, String>>,
    nonce: u64,
}

impl Session {
    /// Takes a request: opens its type or notes the answer. Returns the type if it was just opened.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Option<&'static str> {
        let type_url = ORDER.into_iter().find(|known| *known == request.type_url)?;
        if self.types.contains_key(type_url) {
            return None;
        }
        self.types.insert(type_url, request.initial_resource_versions.clone());
        Some(type_url)
    }

    /// What a type's client lacks, and what it holds that is gone; none when there is nothing to say.
    pub fn response(
        &mut self,
        type_url: &'static str,
        current: &Resources,
        always: bool,
    ) -> Option<DeltaDiscoveryResponse> {
        let held = self.types.get_mut(type_url)?;
        let changed = |name: &String, version: &String| held.get(name) != Some(version);
        let resources: Vec<_> =
            current.values().filter(|r| changed(&r.name, &r.version)).map(|r| (**r).clone()).collect();
        let removed: Vec<String> = held.keys().filter(|name| !current.contains_key(*name)).cloned().collect();
        if resources.is_empty() && removed.is_empty() && !always {
            return None;
        }
        for resource in &resources {
            held.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &removed {
            held.remove(name);
        }
        self.nonce += 1;
        Some(DeltaDiscoveryResponse {
            resources,
            type_url: type_url.into(),
            nonce: self.nonce.to_string(),
            removed_resources: removed,
            ..DeltaDiscoveryResponse::default()
        })
    }
}

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

impl Push {
    async fn serve(mut self, id: u64, mut requests: Streaming<DeltaDiscoveryRequest>, out: Responses) {
        let mut session = Session::default();
        loop {
            let sent = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.answer(id, &mut session, &request, &out).await,
                    Ok(None) | Err(_) => break,
                },
                changed = self.current.changed() => match changed {
                    Ok(()) => self.push_all(id, &mut session, &out).await,
                    Err(_) => break,
                },
            };
            if sent.is_none() {
                break;
            }
        }
        self.clients.with(|(_, table)| table.remove(&id));
        tracing::info!(client = id, "client left");
    }

    async fn answer(
        &self,
        id: u64,
        session: &mut Session,
        request: &DeltaDiscoveryRequest,
        out: &Responses,
    ) -> Option<()> {
        self.clients.update(id, |client| {
            if let Some(node) = &request.node {
                client.node.clone_from(&node.id);
            }
            match &request.error_detail {
                Some(error) => {
                    client.nacks += 1;
                    client.refused.insert(request.type_url.clone(), error.message.clone());
                    tracing::warn!(client = %client.name, type_url = %request.type_url, reason = %error.message, "client refused a response");
                }
                None if !request.response_nonce.is_empty() => {
                    client.acks += 1;
                    client.refused.remove(&request.type_url);
                }
                None => {}
            }
        });
        if let Some(type_url) = session.request(request) {
            self.send(id, session, type_url, true, out).await?;
        }
        Some(())
    }

    async fn push_all(&self, id: u64, session: &mut Session, out: &Responses) -> Option<()> {
        for type_url in ORDER {
            self.send(id, session, type_url, false, out).await?;
        }
        Some(())
    }

    async fn send(
        &self,
        id: u64,
        session: &mut Session,
        type_url: &'static str,
        always: bool,
        out: &Responses,
    ) -> Option<()> {
        let current = self.current.borrow().clone();
        let empty = Resources::new();
        let resources = current.types.get(type_url).unwrap_or(&empty);
        let Some(response) = session.response(type_url, resources, always) else { return Some(()) };
        self.clients.update(id, |client| {
            client.sent += 1;
            client.held.insert(type_url.into(), resources.len());
        });
        out.send(Ok(response)).await.ok()
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Push {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller: Caller = self.tokens.caller(request.metadata())?;
        let id = self.clients.add(caller.to_string());
        tracing::info!(client = id, caller = %caller, "client came");
        let (out, responses) = mpsc::channel(8);
        let mut server = self.clone();
        server.current.mark_unchanged();
        tokio::spawn(server.serve(id, request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}
