//! Clients of the control plane: the agent's own, with the agent's own store.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_net::{
    store::SnapshotStore,
    task::Ready,
    wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE},
    xds::{self, Session, XdsConfig, XdsStatus},
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use super::{fleet::Fleet, program::Program};

/// How long a client may wait for the whole mesh.
const LIMIT: Duration = Duration::from_secs(120);

/// Connected clients.
pub struct Clients {
    /// Time until the first one, alone, had everything.
    pub first: Duration,
    /// Time until all others, connecting together, had everything.
    pub all: Duration,
    stores: Vec<Arc<SnapshotStore>>,
    cancel: CancellationToken,
}

impl Clients {
    /// Connects one and then all others, and waits until each has the whole mesh.
    pub async fn start(program: &Program, count: u32, fleet: &Fleet) -> Result<Self> {
        let cancel = CancellationToken::new();
        let mut stores = vec![connect(program, 0, &cancel)];
        let began = Instant::now();
        complete(&stores[0], fleet).await?;
        let first = began.elapsed();
        let began = Instant::now();
        stores.extend((1..count).map(|n| connect(program, n, &cancel)));
        for store in &stores {
            complete(store, fleet).await?;
        }
        Ok(Self { first, all: began.elapsed(), stores, cancel })
    }

    /// What each of them holds.
    pub fn stores(&self) -> Vec<Arc<SnapshotStore>> {
        self.stores.clone()
    }

    /// Disconnects them.
    pub fn stop(self) {
        self.cancel.cancel();
    }
}

fn connect(program: &Program, n: u32, cancel: &CancellationToken) -> Arc<SnapshotStore> {
    let store = Arc::new(SnapshotStore::default());
    let config = XdsConfig {
        endpoint: program.endpoint(n),
        node_id: format!("ztunnel~10.0.0.1~agent-{n}.culvert-system~culvert-system.svc.cluster.local"),
        metadata: BTreeMap::from([("NODE_NAME".to_string(), format!("node-{n}"))]),
        types: vec![AUTHORIZATION_TYPE, ADDRESS_TYPE],
    };
    let (status, synced) = (watch::Sender::new(XdsStatus::default()), Ready::new().awaits("control plane"));
    tokio::spawn(xds::run(config, store.clone(), Session::default(), status, synced, cancel.clone()));
    store
}

async fn complete(store: &SnapshotStore, fleet: &Fleet) -> Result<()> {
    let mut worlds = store.subscribe();
    let whole = time::timeout(LIMIT, worlds.wait_for(|world| world.is_complete())).await;
    let world = whole.context("a client did not get the whole mesh")??;
    let (pods, services) = (world.workload_count(), world.services().count());
    let expected = (usize::try_from(fleet.pods)?, usize::try_from(fleet.services)?);
    // The API server has a service of its own, with itself behind it.
    ensure!(
        pods > expected.0 && services > expected.1,
        "a client was told of {pods} pods and {services} services as the whole of {fleet}"
    );
    Ok(())
}
