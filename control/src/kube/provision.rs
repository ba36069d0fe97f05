//! Waypoints as Kubernetes objects: ServiceAccount, Service, PodDisruptionBudget and Deployment, applied by
//! the lease holder and removed when nothing asks for them. Only objects with our label are ever changed.

mod objects;

use std::{collections::HashSet, io, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::select_all};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams,
        Preconditions,
    },
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{CONTROL, MANAGED_BY, MANAGER, health::unwatched, lease::while_held};
use crate::provision::{Place, Problems, Provisioner, Wanted, Waypoint};

pub use self::objects::Settings;

/// Objects are compared with what is wanted this often, for what no watch tells.
const LOOK: Duration = Duration::from_secs(60);
/// After a failure they are compared this soon.
const AGAIN: Duration = Duration::from_secs(5);
/// A burst of events is one comparison.
const QUIET: Duration = Duration::from_millis(200);
/// Longest request.
const REQUEST: Duration = Duration::from_secs(10);
/// Objects of one kind in a page of a list.
const PAGE: u32 = 500;

/// The compilation's side: says what is wanted.
#[derive(Debug, Clone)]
pub struct KubeProvisioner {
    wanted: watch::Sender<Option<Wanted>>,
    problems: watch::Receiver<Problems>,
}

impl KubeProvisioner {
    /// The provisioner, and where the writer hears from it and tells what it cannot do.
    pub fn new() -> (Self, watch::Receiver<Option<Wanted>>, watch::Sender<Problems>) {
        let (wanted, receiver) = watch::channel(None);
        let (tell, problems) = watch::channel(Problems::new());
        (Self { wanted, problems }, receiver, tell)
    }

    /// Follows what cannot be made.
    pub fn troubles(&self) -> watch::Receiver<Problems> {
        self.problems.clone()
    }
}

impl Provisioner for KubeProvisioner {
    fn ensure(&mut self, wanted: &Wanted) -> io::Result<()> {
        self.wanted.send_if_modified(|before| {
            let differs = before.as_ref() != Some(wanted);
            *before = Some(wanted.clone());
            differs
        });
        Ok(())
    }

    fn problems(&self) -> Problems {
        self.problems.borrow().clone()
    }
}

/// Kinds, what is referred to first.
fn kinds() -> [ApiResource; 4] {
    [
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<Deployment>(&()),
    ]
}

/// Brings the cluster to what is wanted while the lease is held. Nothing is removed before the compilation
/// has said once what is wanted.
pub async fn provision(
    client: Client,
    settings: Settings,
    wanted: watch::Receiver<Option<Wanted>>,
    problems: watch::Sender<Problems>,
    mut held: watch::Receiver<bool>,
) {
    let writer = Arc::new(Writer { client, settings, problems });
    while_held(&mut held, || {
        let (writer, wanted) = (writer.clone(), wanted.clone());
        async move { writer.run(wanted).await }
    })
    .await;
}

struct Writer {
    client: Client,
    settings: Settings,
    problems: watch::Sender<Problems>,
}

/// An object of ours: kind's place in [`kinds`], namespace and name.
type Known = (usize, Arc<str>, Arc<str>);

impl Writer {
    async fn run(&self, mut wanted: watch::Receiver<Option<Wanted>>) {
        let mine = || watcher::Config::default().labels(&format!("{MANAGED_BY}={CONTROL}"));
        let touched = kinds().into_iter().map(|kind| {
            let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(self.client.clone(), &kind);
            watcher(api, mine()).default_backoff().boxed()
        });
        let mut touched = pin!(select_all(touched));
        wanted.mark_changed();
        let mut pause = LOOK;
        loop {
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return std::future::pending().await },
                Some(event) = touched.next() => if let Err(error) = event {
                    unwatched("objects of waypoints", &error);
                    continue;
                },
                () = sleep(pause) => {}
            }
            sleep(QUIET).await;
            // What came meanwhile is part of this comparison.
            while let Some(Some(_)) = futures_util::FutureExt::now_or_never(touched.next()) {}
            let Some(now) = wanted.borrow_and_update().clone() else { continue };
            let problems = self.settle(&now).await;
            pause = if problems.is_empty() { LOOK } else { AGAIN };
            self.tell(problems);
        }
    }

    fn tell(&self, problems: Problems) {
        self.problems.send_if_modified(|before| {
            for ((namespace, name), reason) in
                problems.iter().filter(|(at, why)| before.get(*at) != Some(*why))
            {
                tracing::error!(%namespace, %name, reason, "waypoint cannot be provisioned; tried again");
            }
            let differs = *before != problems;
            *before = problems;
            differs
        });
    }

    /// One comparison.
    async fn settle(&self, wanted: &Wanted) -> Problems {
        let mut problems = Problems::new();
        let mut known: HashSet<Known> = HashSet::new();
        for (index, kind) in kinds().iter().enumerate() {
            match self.list(kind).await {
                Ok(objects) => {
                    for object in objects {
                        let place = (object.namespace().unwrap_or_default().into(), object.name_any().into());
                        if wanted.contains_key(&place) {
                            known.insert((index, place.0, place.1));
                        } else if let Err(reason) = self.remove(kind, &object).await {
                            problems.insert(place, reason);
                        }
                    }
                }
                // Without the list nobody knows which objects are ours: nothing is written.
                Err(reason) => return [((Arc::from(""), Arc::from("")), reason)].into(),
            }
        }
        for (place, waypoint) in wanted {
            if let Err(reason) = self.make(place, waypoint, &known).await {
                problems.insert(place.clone(), reason);
            }
        }
        problems
    }

    /// Objects with our label.
    async fn list(&self, kind: &ApiResource) -> Result<Vec<PartialObjectMeta<DynamicObject>>, String> {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), kind);
        let mut params = ListParams::default().labels(&format!("{MANAGED_BY}={CONTROL}")).limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = within(api.list_metadata(&params)).await;
            let page = page.map_err(|error| format!("{} cannot be listed: {error}", kind.plural))?;
            let next = page.metadata.continue_.clone().filter(|next| !next.is_empty());
            all.extend(page);
            match next {
                Some(next) => params = params.continue_token(&next),
                None => return Ok(all),
            }
        }
    }

    async fn remove(
        &self,
        kind: &ApiResource,
        object: &PartialObjectMeta<DynamicObject>,
    ) -> Result<(), String> {
        if object.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &namespace, kind);
        // Just the object that was seen: one that lost our label meanwhile has another version.
        let seen = Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: object.metadata.resource_version.clone(),
        };
        let params = DeleteParams { preconditions: Some(seen), ..DeleteParams::background() };
        match within(api.delete(&name, &params)).await {
            Ok(_) => {
                tracing::info!(namespace, name, kind = %kind.kind, "waypoint no longer needed");
                Ok(())
            }
            Err(Failed::Api(error)) if error.code == 404 => Ok(()),
            Err(error) => Err(format!("{} cannot be deleted: {error}", kind.kind)),
        }
    }

    /// Applies the objects of a waypoint, unless one of its names is taken by somebody else's object.
    async fn make(&self, place: &Place, waypoint: &Waypoint, known: &HashSet<Known>) -> Result<(), String> {
        let (namespace, name) = place;
        let kinds = kinds();
        let mut new = false;
        for (index, kind) in kinds.iter().enumerate() {
            if known.contains(&(index, namespace.clone(), name.clone())) {
                continue;
            }
            new = true;
            let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, kind);
            let found = within(api.get_metadata_opt(name)).await;
            let found = found.map_err(|error| format!("{} cannot be read: {error}", kind.kind))?;
            let ours = |object: PartialObjectMeta<DynamicObject>| {
                object.labels().get(MANAGED_BY).is_some_and(|by| by == CONTROL)
            };
            if found.is_some_and(|object| !ours(object)) {
                return Err(format!(
                    "{} {namespace}/{name} is there already and not ours: it is left alone; rename or remove it, \
                     or label it {MANAGED_BY}={CONTROL} to hand it over",
                    kind.kind
                ));
            }
        }
        let params = PatchParams::apply(MANAGER).force();
        for (kind, object) in kinds.iter().zip(objects::of(place, waypoint, &self.settings)) {
            let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, kind);
            let applied = within(api.patch(name, &params, &Patch::Apply(&object))).await;
            applied.map_err(|error| format!("{} cannot be applied: {error}", kind.kind))?;
        }
        if new {
            tracing::info!(%namespace, %name, reason = %waypoint.why, "waypoint created");
        }
        Ok(())
    }
}

/// Why a request failed.
enum Failed {
    Api(Box<kube::core::Status>),
    Other(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Api(status) => f.write_str(&status.message),
            Self::Other(text) => f.write_str(text),
        }
    }
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match timeout(REQUEST, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Failed::Api(status)),
        Ok(Err(error)) => Err(Failed::Other(error.to_string())),
        Err(_) => Err(Failed::Other(format!("no answer within {} s", REQUEST.as_secs()))),
    }
}
