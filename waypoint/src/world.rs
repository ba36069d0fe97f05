//! One snapshot with everything that requests need derived from it once: compiled routes, policies
//! per service, endpoint sets. Requests hold an `Rc` of the world they began in, so each sees one
//! configuration from its first byte to its last (invariant I-3).

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use mesh_core::{
    balance::Endpoint,
    http::{Applies, CompiledRoutes, SubsetError, applies, endpoints},
    model::{
        GatewayAddress, GatewayDestination, ServiceName, Workload, WorkloadUid,
        l7::{L7Policy, TrafficPolicy},
    },
    snapshot::Snapshot,
};

use crate::{
    endpoints::EndpointSet,
    limits::{Destination, LimitBook},
    target::Targets,
    telemetry::Families,
};

/// Who this waypoint is.
#[derive(Debug, Clone)]
pub struct Me {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name: of the Gateway, its Service and its Deployment.
    pub name: Arc<str>,
    /// Its workload as far as it knows itself: identity, and place for locality.
    pub workload: Arc<Workload>,
}

type SetKey = (ServiceName, Option<Arc<str>>, u16);
type Policies = Rc<[Arc<L7Policy>]>;

/// A snapshot and what was derived from it.
pub struct World {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    me: Rc<Me>,
    own: Arc<Workload>,
    limits: LimitBook,
    routes: RefCell<HashMap<ServiceName, Rc<CompiledRoutes>>>,
    policies: RefCell<HashMap<Option<ServiceName>, Policies>>,
    sets: RefCell<HashMap<SetKey, Result<Rc<EndpointSet>, SubsetError>>>,
    single: RefCell<HashMap<(WorkloadUid, u16), Rc<EndpointSet>>>,
    targets: Rc<Targets>,
}

impl World {
    /// Derives from a snapshot; `before` lends what did not change and the last good version of
    /// routes that do not compile any more.
    pub fn new(
        snapshot: Arc<Snapshot>,
        me: &Rc<Me>,
        limits: &LimitBook,
        targets: &Rc<Targets>,
        before: Option<&World>,
        families: &Families,
    ) -> Self {
        let mut routes = HashMap::new();
        for source in snapshot.all_routes() {
            let old = before.and_then(|b| b.routes.borrow().get(&source.service).cloned());
            let compiled = match old {
                Some(old) if Arc::ptr_eq(&old.source, source) => Some(old),
                old => compile(source, old, families),
            };
            if let Some(compiled) = compiled {
                routes.insert(source.service.clone(), compiled);
            }
        }
        let own = snapshot.workload(&me.workload.uid).unwrap_or(&me.workload).clone();
        Self {
            snapshot,
            me: me.clone(),
            own,
            limits: limits.clone(),
            routes: RefCell::new(routes),
            policies: RefCell::default(),
            sets: RefCell::default(),
            single: RefCell::default(),
            targets: targets.clone(),
        }
    }

    /// The routes of a service; the default route when there are none.
    pub fn routes(&self, service: &ServiceName) -> Rc<CompiledRoutes> {
        let mut routes = self.routes.borrow_mut();
        if let Some(found) = routes.get(service) {
            return found.clone();
        }
        let fresh = Rc::new(CompiledRoutes::default_for(service.clone()));
        routes.insert(service.clone(), fresh.clone());
        fresh
    }

    /// The policies for requests to a service, or for traffic addressed to workloads.
    pub fn policies(&self, service: Option<&ServiceName>) -> Policies {
        if let Some(found) = self.policies.borrow().get(&service.cloned()) {
            return found.clone();
        }
        let at = Applies { namespace: &self.me.namespace, name: &self.me.name, service };
        let list: Policies = self.snapshot.l7_policies().filter(|p| applies(p, at)).cloned().collect();
        self.policies.borrow_mut().insert(service.cloned(), list.clone());
        list
    }

    /// The endpoints of a destination for one service port.
    ///
    /// # Errors
    /// The service or subset does not exist or has nothing healthy.
    pub fn endpoints(
        &self,
        service: &ServiceName,
        subset: Option<&Arc<str>>,
        port: u16,
    ) -> Result<Rc<EndpointSet>, SubsetError> {
        let key = (service.clone(), subset.cloned(), port);
        if let Some(found) = self.sets.borrow().get(&key) {
            return found.clone();
        }
        let set = endpoints(&self.snapshot, &self.own, service, subset, port).map(|endpoints| {
            let destination = Some((service.clone(), subset.cloned()));
            self.set(destination, endpoints, self.traffic_policy(service, subset))
        });
        self.sets.borrow_mut().insert(key, set.clone());
        set
    }

    fn set(
        &self,
        destination: Destination,
        endpoints: Vec<Endpoint>,
        policy: TrafficPolicy,
    ) -> Rc<EndpointSet> {
        let service = destination.as_ref().and_then(|(name, _)| self.snapshot.service(name)).cloned();
        let name = destination.as_ref().map(|(service, subset)| match subset {
            Some(subset) => format!("{} subset {subset}", service.hostname).into(),
            None => service.hostname.clone(),
        });
        Rc::new(EndpointSet {
            targets: endpoints.iter().map(|e| self.targets.of(&destination, e)).collect(),
            limits: if destination.is_some() { self.limits.of(&destination) } else { Arc::default() },
            endpoints,
            policy,
            service,
            name,
            picker: RefCell::default(),
        })
    }

    /// One workload as the only endpoint, for traffic addressed to it.
    pub fn only(&self, workload: &Arc<Workload>, port: u16) -> Rc<EndpointSet> {
        let mut single = self.single.borrow_mut();
        let key = (workload.uid.clone(), port);
        let fresh = || {
            let endpoint = Endpoint { workload: workload.clone(), port };
            self.set(None, vec![endpoint], TrafficPolicy::default())
        };
        single.entry(key).or_insert_with(fresh).clone()
    }

    fn traffic_policy(&self, service: &ServiceName, subset: Option<&Arc<str>>) -> TrafficPolicy {
        let Some(routes) = self.snapshot.routes(service) else { return TrafficPolicy::default() };
        let of_subset = subset.and_then(|name| routes.subsets.iter().find(|s| s.name == *name));
        of_subset.map_or(&routes.traffic_policy, |s| &s.traffic_policy).clone()
    }

    /// Whether a waypoint binding names this waypoint. Traffic for anything else is refused: it would
    /// reach its destination under this waypoint's identity instead of the client's.
    pub fn is_mine(&self, gateway: &GatewayAddress) -> bool {
        let is_me = |name: &ServiceName| {
            name.namespace == self.me.namespace && name.hostname.split('.').next() == Some(&*self.me.name)
        };
        match &gateway.destination {
            GatewayDestination::Hostname(name) => is_me(name),
            GatewayDestination::Address(at) => {
                self.own.addresses.contains(&at.address)
                    || self
                        .snapshot
                        .service_at(&at.network, at.address, &self.me.namespace)
                        .is_some_and(|s| is_me(&s.key))
            }
        }
    }
}

fn compile(
    source: &Arc<mesh_core::model::l7::ServiceRoutes>,
    old: Option<Rc<CompiledRoutes>>,
    families: &Families,
) -> Option<Rc<CompiledRoutes>> {
    match CompiledRoutes::compile(source.clone()) {
        Ok(compiled) => Some(Rc::new(compiled)),
        Err(error) => {
            families.rejected.inc();
            tracing::warn!(service = %source.service, %error, kept = old.is_some(), "routes refused");
            old
        }
    }
}
