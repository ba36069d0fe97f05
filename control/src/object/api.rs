//! `apiVersion`: which API a document is of. The same kind may belong to several.

use std::sync::Arc;

use crate::reader::Reader;

const CORE: &[&str] = &["v1"];
const NETWORKING: (&str, &[&str]) = ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"]);
const SECURITY: (&str, &[&str]) = ("security.istio.io", &["v1", "v1beta1"]);

/// Group and versions of the kinds that are read.
fn api(kind: &str) -> Option<(&'static str, &'static [&'static str])> {
    Some(match kind {
        "Namespace" | "Node" | "ServiceAccount" | "ConfigMap" | "Pod" | "Service" => ("", CORE),
        "Deployment" | "StatefulSet" | "ReplicaSet" => ("apps", CORE),
        "EndpointSlice" => ("discovery.k8s.io", &["v1", "v1beta1"]),
        "Gateway" | "GatewayClass" => ("gateway.networking.k8s.io", &["v1", "v1beta1", "v1alpha2"]),
        "VirtualService" | "DestinationRule" | "ServiceEntry" | "WorkloadEntry" => NETWORKING,
        "PeerAuthentication" | "AuthorizationPolicy" => SECURITY,
        _ => return None,
    })
}

/// The kind as it is known here. One of another API has its group behind it, such as
/// `Service.serving.knative.dev`. A kind of Istio's with a wrong `apiVersion` is a mistake: to take it for
/// something else would leave a policy out.
pub(super) fn kind_of(doc: &Reader<'_>, kind: Arc<str>) -> Arc<str> {
    let Some((group, versions)) = api(&kind) else { return kind };
    let Some(said) = doc.string("apiVersion") else { return kind };
    let (of, version) = said.rsplit_once('/').unwrap_or(("", &said));
    if of == group && versions.contains(&version) {
        return kind;
    }
    if of != group && of.contains('.') && !group.ends_with("istio.io") {
        return format!("{kind}.{of}").into();
    }
    let whole =
        |version: &&str| if group.is_empty() { (*version).into() } else { format!("{group}/{version}") };
    let right: Vec<String> = versions.iter().map(whole).collect();
    let reason = format!("{said:?} is no API version of {kind}");
    doc.at("apiVersion", |f| f.error("bad-api-version", reason, &format!("use {}", right.join(" or "))));
    kind
}
