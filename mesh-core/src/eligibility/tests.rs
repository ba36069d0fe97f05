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
        excluded_namespaces: &["kube-system".to_owned()],
    };
    assert_eq!(decide(&pod), Eligibility::HostNetwork);
    pod.host_network = false;
    assert_eq!(decide(&pod), Eligibility::ExcludedNamespace);
}
