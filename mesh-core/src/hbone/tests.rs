use proptest::prelude::*;

use super::*;
use crate::{entropy::SplitMix64, fixtures::pod};

#[test]
fn authority_is_an_address_or_a_host_with_a_port() {
    for good in ["10.0.0.2:80", "[fd00::1]:80", "web.default.svc.cluster.local:8000"] {
        assert_eq!(good.parse::<Authority>().unwrap().to_string(), good);
    }
    assert_eq!("[::ffff:10.0.0.2]:80".parse::<Authority>().unwrap().to_string(), "10.0.0.2:80");
}

#[test]
fn malformed_authorities_are_refused() {
    let long = format!("{}:80", "a".repeat(300));
    for bad in [
        "",
        ":80",
        "host",
        "host:",
        "host:0",
        "host:+80",
        "host:70000",
        "10.0.0.2",
        "10.0.0.2:0",
        "a b:80",
        "a/b:80",
        "::1:80",
        &long,
    ] {
        assert!(bad.parse::<Authority>().is_err(), "{bad:?}");
    }
}

#[test]
fn baggage_has_istios_order_and_leaves_out_what_is_empty() {
    let mut w = pod("web-1", [10, 0, 0, 2]);
    w.workload_name = "web".into();
    w.canonical_name = "web".into();
    w.canonical_revision = "v1".into();
    let text = baggage(&w);
    assert_eq!(
        text,
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.pod.name=web,service.name=web,service.version=v1"
    );
    let parsed = Baggage::parse(&text);
    assert_eq!(parsed.workload_name.as_deref(), Some("web"));
    assert_eq!(parsed.region, None);
}

#[test]
fn forwarded_round_trips() {
    let text = forwarded("10.0.0.1:4000".parse().unwrap(), Some("web.default.svc"));
    assert_eq!(text, "for=\"10.0.0.1:4000\";host=web.default.svc");
    assert_eq!(forwarded_host(&text), Some("web.default.svc"));
    assert_eq!(forwarded_for(&text), Some("10.0.0.1:4000".parse().unwrap()));
    assert_eq!(forwarded_host("for=x;host=\"quoted\""), Some("quoted"));
}

#[test]
fn traceparent_is_55_characters_or_nothing() {
    let fresh = TraceParent::random(&mut SplitMix64::new(1));
    assert_eq!(fresh.to_string().len(), 55);
    assert_eq!(TraceParent::parse(&fresh.to_string()), Some(fresh));
    for bad in ["", "00-0-0-00", &"0".repeat(55), &format!("01{}", &fresh.to_string()[2..])] {
        assert_eq!(TraceParent::parse(bad), None, "{bad}");
    }
}

#[test]
fn statuses_are_those_of_ztunnel() {
    assert_eq!(status(Reason::PolicyDenied), 401);
    assert_eq!(status(Reason::WrongDestination), 400);
    assert!(Reason::ALL.iter().all(|r| [400, 401, 503].contains(&status(*r))));
}

proptest! {
    #[test]
    fn parsers_never_panic(text in "\\PC{0,80}") {
        let _ = text.parse::<Authority>();
        let _ = (Baggage::parse(&text), TraceParent::parse(&text), forwarded_host(&text).is_some(), forwarded_for(&text));
    }
}
