//! Every waypoint, and who uses it.

use serde::Serialize;
use serde_json::{Value, json};

use super::{GATEWAY, USE};
use crate::{
    args::lifecycle::WaypointList,
    cluster::{
        Cluster,
        connect::connect,
        kinds::collection,
        pod::{condition, name, text},
    },
    exit::{Exit, Failure},
    manifest::WAYPOINT_CLASS,
    style::Style,
    table::Table,
};

/// A waypoint.
#[derive(Debug, Serialize)]
struct Waypoint {
    namespace: String,
    name: String,
    /// Whose traffic it takes.
    traffic: String,
    /// Whether no Gateway asks for it.
    by_itself: bool,
    ready: bool,
    /// Namespaces and services with its label.
    users: Vec<String>,
}

/// Lists them.
///
/// # Errors
/// The API server does not answer.
pub(super) async fn run(
    options: &WaypointList,
    as_json: bool,
    style: Style,
) -> Result<(Exit, String), Failure> {
    let cluster = connect(&options.reach).await?;
    let all = gather(&cluster, options.namespace.as_deref().unwrap_or_default()).await?;
    if as_json {
        return Ok((Exit::Well, format!("{:#}\n", json!({"waypoints": all}))));
    }
    if all.is_empty() {
        return Ok((Exit::Well, "there is no waypoint\n  next: culvert waypoint apply, or apply a VirtualService: its waypoint comes by itself\n".to_owned()));
    }
    let mut table = Table::new(&["NAMESPACE", "NAME", "FOR", "READY", "MADE BY", "USED BY"]);
    for w in &all {
        let made = if w.by_itself { "itself" } else { "Gateway" };
        let ready = if w.ready { "yes" } else { "NO" };
        table.row([
            w.namespace.clone(),
            w.name.clone(),
            w.traffic.clone(),
            ready.to_owned(),
            made.to_owned(),
            w.users.join(","),
        ]);
    }
    let mut lines = table.lines();
    if let Some(heading) = lines.first_mut() {
        *heading = style.bold(heading);
    }
    Ok((Exit::Well, lines.join("\n") + "\n"))
}

async fn gather(cluster: &Cluster, namespace: &str) -> Result<Vec<Waypoint>, Failure> {
    let class = format!("labelSelector=gateway.networking.k8s.io%2Fgateway-class-name%3D{WAYPOINT_CLASS}");
    let (gateways, deployments) =
        (collection(GATEWAY, "Gateway", namespace), collection("apps/v1", "Deployment", namespace));
    let (namespaces, services) = (collection("v1", "Namespace", ""), collection("v1", "Service", ""));
    let users = "labelSelector=istio.io%2Fuse-waypoint";
    let (gateways, deployments, namespaces, services) = tokio::try_join!(
        cluster.list(&gateways, ""),
        cluster.list(&deployments, &class),
        cluster.list(&namespaces, users),
        cluster.list(&services, users),
    )?;
    Ok(join(&gateways, &deployments, &namespaces, &services))
}

fn join(
    gateways: &[Value],
    deployments: &[Value],
    namespaces: &[Value],
    services: &[Value],
) -> Vec<Waypoint> {
    let asked: Vec<_> =
        gateways.iter().filter(|g| text(g, "/spec/gatewayClassName") == WAYPOINT_CLASS).collect();
    let itself = deployments.iter().filter(|d| !asked.iter().any(|g| name(g) == name(d)));
    let both =
        asked.iter().map(|gateway| (*gateway, false)).chain(itself.map(|deployment| (deployment, true)));
    let waypoint = |(object, by_itself): (&Value, bool)| {
        let deployment = deployments.iter().find(|d| name(d) == name(object));
        let traffic = object["metadata"]["labels"]["istio.io/waypoint-for"].as_str().unwrap_or("service");
        Waypoint {
            namespace: text(object, "/metadata/namespace").to_owned(),
            name: text(object, "/metadata/name").to_owned(),
            traffic: traffic.to_owned(),
            by_itself,
            ready: deployment.is_some_and(|d| condition(d, "Available")),
            users: users(object, namespaces, services),
        }
    };
    let mut all: Vec<_> = both.map(waypoint).collect();
    all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    all
}

/// Namespaces and services whose label names it; a service's own label wins over that of its namespace.
fn users(waypoint: &Value, namespaces: &[Value], services: &[Value]) -> Vec<String> {
    let (place, called) = (text(waypoint, "/metadata/namespace"), text(waypoint, "/metadata/name"));
    let names = |object: &Value, own: &str| {
        let labels = &object["metadata"]["labels"];
        let elsewhere = labels["istio.io/use-waypoint-namespace"].as_str().unwrap_or(own);
        labels[USE] == called && elsewhere == place
    };
    let by_namespace = namespaces
        .iter()
        .filter(|ns| names(ns, text(ns, "/metadata/name")))
        .map(|ns| text(ns, "/metadata/name").to_owned());
    let by_service = services.iter().filter(|s| names(s, text(s, "/metadata/namespace"))).map(name);
    by_namespace.chain(by_service).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_and_waypoints_that_came_by_themselves_are_joined_with_their_users() {
        let meta = |namespace: &str, name: &str| json!({"namespace": namespace, "name": name});
        let gateway = json!({"metadata": meta("a", "w"), "spec": {"gatewayClassName": WAYPOINT_CLASS}});
        let foreign = json!({"metadata": meta("a", "in"), "spec": {"gatewayClassName": "nginx"}});
        let deployment = |ns: &str, name: &str| json!({"metadata": meta(ns, name), "status": {"conditions": [{"type": "Available", "status": "True"}]}});
        let namespace = json!({"metadata": {"name": "a", "labels": {USE: "w"}}});
        let service = json!({"metadata": {"namespace": "c", "name": "s", "labels": {USE: "w", "istio.io/use-waypoint-namespace": "a"}}});
        let all = join(
            &[gateway, foreign],
            &[deployment("a", "w"), deployment("b", "waypoint")],
            &[namespace],
            &[service],
        );
        let said: Vec<_> =
            all.iter().map(|w| (w.namespace.as_str(), w.by_itself, w.ready, w.users.join(","))).collect();
        assert_eq!(said, [("a", false, true, "a,c/s".to_owned()), ("b", true, true, String::new())]);
    }
}
