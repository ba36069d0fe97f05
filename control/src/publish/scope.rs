//! What each kind of client is given: agents no L7 resources, a waypoint only what concerns the services
//! that use it.

use std::{borrow::Cow, collections::BTreeSet};

use mesh_core::model::{
    GatewayAddress, GatewayDestination, ServiceName,
    l7::{L7Policy, L7Target, RouteAction, ServiceRoutes},
};
use mesh_net::wire::{L7_POLICY_TYPE, LABELS_TYPE, ROUTES_TYPE};

use super::{Published, Resources};
use crate::{auth::Caller, compile::Compiled};

impl Published {
    /// Whether a caller's view of a type is the same as in an earlier version. Scopes of waypoints depend
    /// on more than the type itself, so theirs count as changed with anything.
    pub fn unchanged(&self, type_url: &str, caller: &Caller, since: u64) -> bool {
        let scoped = matches!((caller, type_url), (Caller::Waypoint(..), ROUTES_TYPE | L7_POLICY_TYPE));
        let last = if scoped { self.version } else { self.changed.get(type_url).copied().unwrap_or(0) };
        last <= since
    }

    /// The resources of a type that a caller gets. Labels go to every waypoint whole: any workload may be
    /// a client whose labels a route compares.
    pub fn view(&self, type_url: &str, caller: &Caller) -> Cow<'_, Resources> {
        let Some(all) = self.types.get(type_url) else { return Cow::Owned(Resources::new()) };
        match (caller, type_url) {
            (Caller::Node(_), LABELS_TYPE | ROUTES_TYPE | L7_POLICY_TYPE) => Cow::Owned(Resources::new()),
            (Caller::Waypoint(namespace, account), ROUTES_TYPE | L7_POLICY_TYPE) => {
                let scope = Scope::of(&self.compiled, namespace, account);
                let names = match type_url {
                    ROUTES_TYPE => scope.routes(&self.compiled),
                    _ => scope.policies(&self.compiled),
                };
                let mine = |name: String| Some((name.clone(), all.get(&name)?.clone()));
                Cow::Owned(names.into_iter().filter_map(mine).collect())
            }
            _ => Cow::Borrowed(all),
        }
    }
}

/// What one waypoint stands in front of.
struct Scope {
    gateways: BTreeSet<ServiceName>,
    services: BTreeSet<ServiceName>,
}

impl Scope {
    /// A waypoint is known by its identity: its gateways are those that its pods back, and the one of
    /// its account's name. Services count from the moment they are meant for it, before clients are sent.
    fn of(compiled: &Compiled, namespace: &str, account: &str) -> Self {
        let own = compiled
            .workloads
            .values()
            .filter(|w| *w.namespace == *namespace && *w.service_account == *account);
        let mut gateways: BTreeSet<ServiceName> =
            own.flat_map(|w| w.services.iter()).map(|(name, _)| name.clone()).collect();
        gateways.insert(ServiceName::new(namespace, format!("{account}.{namespace}.svc.cluster.local")));
        let mine = |gateway: &GatewayAddress| match &gateway.destination {
            GatewayDestination::Hostname(name) => gateways.contains(name),
            GatewayDestination::Address(_) => false,
        };
        let used = compiled.waypoint_of.iter().filter(|(_, gateway)| mine(gateway));
        let services = used.map(|(service, _)| service.clone()).collect();
        Self { gateways, services }
    }

    /// Routes of its services and, for subsets and traffic policy, of what those forward to.
    fn routes(&self, compiled: &Compiled) -> BTreeSet<String> {
        let own = self.services.iter().filter_map(|name| compiled.routes.get(name));
        let forwarded = own.flat_map(destinations);
        self.services.iter().chain(forwarded).map(ServiceName::to_string).collect()
    }

    fn policies(&self, compiled: &Compiled) -> BTreeSet<String> {
        let concerned = compiled.l7_policies.values().filter(|p| self.concerns(p));
        concerned.map(|p| p.key.to_string()).collect()
    }

    fn concerns(&self, policy: &L7Policy) -> bool {
        policy.targets.iter().any(|target| match target {
            L7Target::AllWaypoints => true,
            L7Target::Service(name) => self.services.contains(name),
            L7Target::Gateway { namespace, name } => self.gateways.iter().any(|gateway| {
                gateway.namespace == *namespace && gateway.hostname.split('.').next() == Some(&**name)
            }),
        })
    }
}

fn destinations(routes: &ServiceRoutes) -> impl Iterator<Item = &ServiceName> {
    let http = routes.http.iter().filter_map(|route| match &route.action {
        RouteAction::Forward(list) => Some(list),
        RouteAction::Redirect(_) | RouteAction::Direct(_) => None,
    });
    let tcp = routes.tcp.iter().map(|route| &route.destinations);
    http.chain(tcp).flatten().map(|d| &d.service)
}
