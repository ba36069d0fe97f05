//! A folder of mistakes: each is named precisely and harms nothing else.
#![allow(clippy::unwrap_used, reason = "a test panics, so that the line number survives")]

use control::{
    analyze, compile, compile_folder, disk::Place, finding::Severity, memory::Memory, source::Store,
    vips::Vips,
};

#[path = "support/bad.rs"]
mod bad;

use bad::MISTAKES;

#[test]
fn every_mistake_is_one_error_with_file_line_object_field_and_reason() {
    let report = analyze(&bad::folder());
    let errors: Vec<_> = report.findings.iter().filter(|f| f.severity == Severity::Error).collect();
    for (error, (file, line, object, field, code, reason)) in errors.iter().zip(MISTAKES) {
        let found = (&*error.file, error.line, &*error.object, &*error.field, error.code);
        assert_eq!(found, (file, line, object, field, code));
        assert!(error.reason.contains(reason), "{error}");
    }
    assert_eq!(errors.len(), MISTAKES.len());
    assert!(report.findings.iter().all(|f| !f.reason.is_empty() && !f.remedy.is_empty()));
}

#[test]
fn what_is_good_applies_and_an_unsupported_field_is_named() {
    let (compiled, report) = compile_folder(&bad::folder());
    assert_eq!(compiled.services.len(), 1);
    assert_eq!(compiled.services.values().next().unwrap().ports[0].service_port, 80);
    assert!(compiled.workloads.is_empty());
    let closed: Vec<_> = compiled.policies.values().map(|p| (&*p.key.name, p.rules.len())).collect();
    assert_eq!(
        closed,
        [("action", 1), ("cidr", 0), ("group", 1), ("narrowing", 0)],
        "refused policies are closed"
    );
    let mirror = report.findings.iter().find(|f| f.field == "spec.http[0].mirror").unwrap();
    assert_eq!((mirror.severity, mirror.code, mirror.line), (Severity::Warning, "unsupported-field", 14));
}

#[test]
fn the_last_good_version_stays_when_a_file_is_broken_or_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    let good = "kind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n    - port: 80\n";
    std::fs::write(&file, good).unwrap();
    let mut store = Store::default();
    let mut memory = Memory::new(control::SERVICE_CIDR, None);
    let mut ports = |store: &mut Store| {
        store.load(folder.path());
        let compiled = compile::compile(store, &compile::Options::default(), &mut memory);
        compiled.services.values().flat_map(|s| &s.ports).map(|p| p.service_port).collect::<Vec<_>>()
    };
    assert_eq!(ports(&mut store), [80]);
    std::fs::write(&file, good.replace("80", "eighty")).unwrap();
    assert_eq!(ports(&mut store), [80]);
    std::fs::write(&file, "kind: Service\nmetadata: {name: w").unwrap();
    assert_eq!(ports(&mut store), [80]);
    std::fs::write(&file, good.replace("80", "81")).unwrap();
    assert_eq!(ports(&mut store), [81]);
    std::fs::remove_file(&file).unwrap();
    assert!(ports(&mut store).is_empty(), "what is deleted is gone");
}

#[test]
fn a_service_keeps_its_virtual_address_whatever_else_comes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vips.json");
    let mut vips = Vips::new(control::SERVICE_CIDR, Place::File(file.clone()));
    let first = vips.get("default/web");
    vips.save();
    let mut again = Vips::new(control::SERVICE_CIDR, Place::File(file));
    let others: Vec<_> = (0..200).map(|i| again.get(&format!("default/other-{i}"))).collect();
    assert!(first.is_some() && !others.contains(&first));
    assert_eq!(again.get("default/web"), first);
}

const WEB: &str = "kind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
const DENY: &str = "kind: AuthorizationPolicy\nmetadata: {name: deny}\nspec: {action: DENY, rules: [{}]}\n";

#[test]
fn no_way_to_begin_a_document_hides_it() {
    let flow = "{kind: AuthorizationPolicy, metadata: {name: deny}, spec: {action: DENY, rules: [{}]}}";
    for text in [
        format!("{WEB}---\n{DENY}"),
        format!("{WEB}--- # deny everybody\n{DENY}"),
        format!("{WEB}---\t\n{DENY}"),
        format!("{WEB}---\r\n{}", DENY.replace('\n', "\r\n")),
        format!("{WEB}--- {flow}\n"),
        format!("{WEB}...\n{DENY}"),
        format!("{WEB}... # end\n---\n{DENY}"),
        format!("%YAML 1.2\n---\n{WEB}...\n%YAML 1.2\n--- # b\n{DENY}"),
        format!("\u{feff}---\n{WEB}---\n{DENY}"),
        format!("kind: List\nitems:\n- {flow}\n---\n{WEB}"),
        format!("kind: List\nitems:\n- kind: List\n  items: [{flow}]\n---\n{WEB}"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), &text).unwrap();
        let (compiled, report) = compile_folder(folder.path());
        assert!(report.findings.is_empty(), "{text:?}: {:?}", report.findings);
        assert_eq!((compiled.services.len(), compiled.policies.len()), (1, 1), "{text:?}");
    }
}

#[test]
fn what_would_be_hidden_in_a_document_is_an_error() {
    for (text, line, code) in [
        (format!("{WEB}{DENY}"), 1, "bad-yaml"),
        (format!("{WEB}\r---\r{DENY}"), 1, "bad-yaml"),
        ("kind: List\n".into(), 1, "wrong-type"),
        ("kind: List\nitems: {a: b}\n".into(), 2, "wrong-type"),
        ("kind: PodList\nitems:\n".into(), 2, "wrong-type"),
        ("kind: List\nitems: [null]\n".into(), 2, "missing-field"),
        (
            "kind: AuthorizationPolicy\nspec: {action: DENY}\nmetadata: {name: a}\nspec: {}\n".into(),
            1,
            "bad-yaml",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), &text).unwrap();
        let findings = analyze(folder.path()).findings;
        let found: Vec<_> = findings.iter().map(|f| (f.severity, f.line, f.code)).collect();
        assert!(found.contains(&(Severity::Error, line, code)), "{text:?}: {findings:?}");
    }
}

#[test]
fn an_object_in_a_list_is_found_at_its_own_line() {
    let folder = tempfile::tempdir().unwrap();
    let list = "kind: List\nitems:\n- kind: Service\n  metadata:\n    name: a\n  spec:\n    ports:\n    - port: 80\n\
                - kind: Service\n  metadata:\n    name: b\n  spec:\n    ports:\n    - port: 99999\n";
    std::fs::write(folder.path().join("list.yaml"), list).unwrap();
    let (compiled, report) = compile_folder(folder.path());
    assert_eq!(compiled.services.len(), 1);
    let found: Vec<_> = report.findings.iter().map(|f| (f.line, &*f.object, &*f.field)).collect();
    assert_eq!(found, [(14, "Service default/b", "spec.ports[0].port")]);
}
