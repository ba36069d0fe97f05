use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn ask(namespace: &[(&str, &str)], pod: &[(&str, &str)], annotations: &[(&str, &str)]) -> Eligibility {
    decide(&Candidate {
        namespace: "default",
        namespace_labels: &map(namespace),
        labels: &map(pod),
        annotations: &map(annotations),
        host_network: false,
        sandboxed: false,
        excluded_namespaces: &["kube-system".to_owned()],
    })
}

const AMBIENT: (&str, &str) = (MODE_LABEL, "ambient");
const NONE: (&str, &str) = (MODE_LABEL, "none");
const INJECT: (&str, &str) = (INJECTION_LABEL, "enabled");

#[test]
fn labels_of_namespace_and_pod_decide() {
    assert_eq!(ask(&[], &[], &[]), Eligibility::NotSelected);
    assert_eq!(ask(&[AMBIENT], &[], &[]), Eligibility::NamespaceLabel);
    assert_eq!(ask(&[], &[AMBIENT], &[]), Eligibility::PodLabel);
    assert_eq!(ask(&[AMBIENT], &[NONE], &[]), Eligibility::OptedOut);
    assert_eq!(ask(&[NONE], &[], &[]), Eligibility::NotSelected);
}

#[test]
fn injection_counts_only_without_a_sidecar_or_an_opt_out() {
    assert_eq!(ask(&[INJECT], &[], &[]), Eligibility::InjectionLabel);
    assert_eq!(ask(&[INJECT], &[], &[(SIDECAR_ANNOTATION, "{}")]), Eligibility::Sidecar);
    assert_eq!(ask(&[INJECT], &[("sidecar.istio.io/inject", "false")], &[]), Eligibility::OptedOut);
    assert_eq!(ask(&[INJECT, NONE], &[], &[]), Eligibility::NotSelected);
}

#[test]
fn a_sidecar_or_the_hosts_network_excludes_whatever_the_labels_say() {
    assert_eq!(ask(&[AMBIENT], &[AMBIENT], &[(SIDECAR_ANNOTATION, "{}")]), Eligibility::Sidecar);
    let (labels, none) = (map(&[AMBIENT]), map(&[]));
    let mut pod = Candidate {
        namespace: "kube-system",
        namespace_labels: &labels,
        labels: &labels,
        annotations: &none,
        host_network: true,
        sandboxed: false,
        excluded_namespaces: &["kube-system".to_owned()],
    };
    assert_eq!(decide(&pod), Eligibility::HostNetwork);
    pod.host_network = false;
    assert_eq!(decide(&pod), Eligibility::ExcludedNamespace);
}

#[test]
fn a_guest_runtime_is_refused_only_where_the_mesh_is_asked_for() {
    let (ambient, none) = (map(&[AMBIENT]), map(&[]));
    let mut pod = Candidate {
        namespace: "default",
        namespace_labels: &ambient,
        labels: &none,
        annotations: &none,
        host_network: false,
        sandboxed: true,
        excluded_namespaces: &[],
    };
    assert!(decide(&pod) == Eligibility::SandboxedRuntime && decide(&pod).is_refused());
    assert!(!decide(&pod).is_eligible() && decide(&pod).to_string().contains("runtimeClassName"));
    pod.namespace_labels = &none;
    assert_eq!(decide(&pod), Eligibility::NotSelected);
}

#[test]
fn guests_are_told_by_the_name_of_the_class_or_by_their_overhead() {
    for guest in ["kata", "kata-qemu", "gvisor", "runsc", "kata-peerpods", "vm-firecracker"] {
        assert!(is_sandboxed(Some(guest), false), "{guest}");
    }
    assert!(!is_sandboxed(Some("nvidia"), false) && is_sandboxed(Some("nvidia"), true));
    assert!(!is_sandboxed(None, false) && !is_sandboxed(None, true));
}

#[test]
fn where_only_the_namespace_is_known_everything_that_may_be_eligible_is_held() {
    let (plain, ambient, inject) = (map(&[]), map(&[AMBIENT]), map(&[INJECT]));
    let held = |namespace: &str, labels: Option<&BTreeMap<String, String>>, own_labels| {
        let excluded_namespaces = &["kube-system".to_owned()];
        may_be_eligible(&Remembered { namespace, labels, own_labels, excluded_namespaces })
    };
    assert!(held("shop", None, false), "a namespace that nobody knows");
    assert!(held("shop", Some(&ambient), false) && held("shop", Some(&inject), false));
    assert!(held("shop", Some(&plain), true), "a namespace with pods that ask by themselves");
    assert!(!held("shop", Some(&plain), false) && !held("shop", Some(&map(&[NONE])), false));
    assert!(!held("kube-system", None, true) && !held("kube-system", Some(&ambient), true));
}
