//! Gateways as waypoints: which are made, which are refused, and whose they are.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use control::{
    compile::{Compiled, Options, compile},
    finding::{Finding, Severity},
    memory::Memory,
    provision::{FolderProvisioner, Provisioner},
    source::Store,
};

fn gateway(name: &str, class: &str, listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}}}\n\
         spec: {{gatewayClassName: {class}, listeners: [{listeners}]}}\n"
    )
}

const HBONE: &str = "{name: mesh, port: 15008, protocol: HBONE}";

fn compiled(documents: &[String], istio_waypoints: bool) -> (Compiled, Vec<Finding>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    let mut store = Store::default();
    store.load(folder.path());
    let options = Options { istio_waypoints, ..Options::default() };
    let compiled = compile(&store, &options, &mut Memory::new(control::SERVICE_CIDR, None));
    let findings = control::all_findings(&store, &compiled);
    (compiled, findings)
}

#[test]
fn a_gateway_of_our_class_makes_a_waypoint_of_its_name_and_owns_it() {
    let (compiled, findings) = compiled(&[gateway("way", "culvert-waypoint", HBONE)], false);
    assert!(findings.is_empty(), "{findings:?}");
    let wanted = compiled.wanted();
    let waypoint = &wanted[&("shop".into(), "way".into())];
    assert_eq!((wanted.len(), waypoint.class()), (1, "culvert-waypoint"));
    assert_eq!(&*waypoint.gateway.as_ref().unwrap().uid, "u-way");
    let folder = tempfile::tempdir().unwrap();
    let mut provisioner = FolderProvisioner::new(folder.path());
    provisioner.ensure(&wanted).unwrap();
    let text = std::fs::read_to_string(folder.path().join("generated/waypoint-shop.way.yaml")).unwrap();
    assert!(text.contains("serviceAccountName: way") && text.contains("name: way"), "{text}");
    provisioner.ensure(&Default::default()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("generated")).unwrap().count(), 0);
}

#[test]
fn a_gateway_without_the_mesh_listener_is_refused_with_the_listener_to_add() {
    for listeners in
        ["", "{name: http, port: 80, protocol: HTTP}", "{name: mesh, port: 15009, protocol: HBONE}"]
    {
        let (compiled, findings) = compiled(&[gateway("way", "culvert-waypoint", listeners)], false);
        assert!(compiled.wanted().is_empty(), "{listeners}");
        let refused = findings.iter().find(|f| f.code == "missing-listener").unwrap();
        assert_eq!((refused.severity, refused.field.as_str()), (Severity::Error, "spec.listeners"));
        assert!(refused.remedy.contains("15008"), "{}", refused.remedy);
    }
    let two = format!("{HBONE}, {{name: http, port: 80, protocol: HTTP}}");
    let (compiled, findings) = compiled(&[gateway("way", "culvert-waypoint", &two)], false);
    assert_eq!((compiled.wanted().len(), findings[0].code), (1, "unsupported-field"));
}

#[test]
fn a_gateway_of_another_class_is_its_controllers_and_istios_waypoints_are_ours_only_when_we_are_told() {
    let documents =
        [gateway("a", "istio-waypoint", HBONE), gateway("b", "nginx", "{name: x, port: 80, protocol: HTTP}")];
    let (alone, findings) = compiled(&documents, false);
    assert!(alone.wanted().is_empty());
    let said: Vec<_> = findings.iter().map(|f| (f.severity, f.code)).collect();
    assert_eq!(said, [(Severity::Info, "other-controller"); 2]);
    let (told, _) = compiled(&documents, true);
    let wanted = told.wanted();
    assert_eq!(wanted.len(), 1);
    assert_eq!(wanted[&("shop".into(), "a".into())].class(), "istio-waypoint");
}
