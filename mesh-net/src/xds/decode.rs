//! One resource of a response → one change.

use std::sync::Arc;

use mesh_core::{delta::Change, http::CompiledRoutes, model::WorkloadUid, snapshot::Snapshot};
use prost::Message;

use crate::{
    api::{culvert::l7::v1 as l7, envoy::service::discovery::v3::Resource, istio},
    wire::{self, workload::Address},
};

/// Whether resources of a type can be decoded.
pub(super) fn is_known(type_url: &str) -> bool {
    let types = [
        wire::ADDRESS_TYPE,
        wire::AUTHORIZATION_TYPE,
        wire::ROUTES_TYPE,
        wire::L7_POLICY_TYPE,
        wire::LABELS_TYPE,
    ];
    types.contains(&type_url)
}

/// Decodes a resource of a type; the error is the reason that goes into the NACK.
///
/// # Errors
/// The bytes are no such message, or its values cannot be valid.
pub fn decode(type_url: &str, resource: &Resource) -> Result<Change, String> {
    let any = resource.resource.as_ref().ok_or("the resource has no body")?;
    if any.type_url != type_url {
        return Err(format!("the body is a {}", any.type_url));
    }
    let bytes = any.value.as_slice();
    let text = |error: wire::WireError| error.to_string();
    match type_url {
        wire::ADDRESS_TYPE => {
            match wire::workload::from_address(message::<istio::workload::Address>(bytes)?).map_err(text)? {
                Address::Workload(workload) => Ok(Change::Workload(Arc::new(workload))),
                Address::Service(service) => Ok(Change::Service(Arc::new(service))),
            }
        }
        wire::AUTHORIZATION_TYPE => {
            let policy = message::<istio::security::Authorization>(bytes)?;
            wire::policy::from_authorization(&resource.name, policy)
                .map(|p| Change::Policy(Arc::new(p)))
                .map_err(text)
        }
        wire::ROUTES_TYPE => {
            let routes = message::<l7::ServiceRoutes>(bytes)?;
            let routes = Arc::new(wire::l7::from_routes(routes).map_err(text)?);
            // Compiled here only to be refused here: later there is nobody who could be told.
            CompiledRoutes::compile(routes.clone()).map_err(|error| error.to_string())?;
            Ok(Change::Routes(routes))
        }
        wire::L7_POLICY_TYPE => {
            let policy = message::<l7::Policy>(bytes)?;
            wire::l7::from_l7_policy(policy).map(|p| Change::L7Policy(Arc::new(p))).map_err(text)
        }
        wire::LABELS_TYPE => {
            let labels = message::<l7::WorkloadLabels>(bytes)?;
            wire::l7::from_labels(labels).map(|l| Change::Labels(Arc::new(l))).map_err(text)
        }
        _ => Err(format!("type {type_url} was not asked for")),
    }
}

fn message<M: Message + Default>(bytes: &[u8]) -> Result<M, String> {
    M::decode(bytes).map_err(|error| format!("cannot be decoded: {error}"))
}

/// The change that a removed name means. An address is a workload's uid if there is such a workload,
/// else a service's key.
///
/// # Errors
/// The name cannot be one of that type.
pub fn removal(type_url: &str, name: &str, snapshot: &Snapshot) -> Result<Change, String> {
    let wrong = || format!("{name:?} is no name of {type_url}");
    let uid = WorkloadUid::new(name);
    match type_url {
        wire::ADDRESS_TYPE if snapshot.workload(&uid).is_some() => Ok(Change::RemoveWorkload(uid)),
        wire::ADDRESS_TYPE => Ok(name.parse().map_or(Change::RemoveWorkload(uid), Change::RemoveService)),
        wire::AUTHORIZATION_TYPE => name.parse().map(Change::RemovePolicy).map_err(|_| wrong()),
        wire::ROUTES_TYPE => name.parse().map(Change::RemoveRoutes).map_err(|_| wrong()),
        wire::L7_POLICY_TYPE => name.parse().map(Change::RemoveL7Policy).map_err(|_| wrong()),
        wire::LABELS_TYPE => Ok(Change::RemoveLabels(uid)),
        _ => Err(wrong()),
    }
}
