//! What every outcome leaves in metrics and access log.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use common::{App, Bench, policy_deny_header, route, subset, weighted};
use mesh_core::model::{
    AppProtocol,
    l7::{
        AbortStatus, Fault, HttpMatch, L7Operation, L7Policy, L7Rule, Redirect, RouteAction, RouteMatch,
        ServiceRoutes,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What Kiali's graph needs of every series, never empty (`grpc_response_status` may be).
const KIALI: [&str; 13] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "response_flags",
];
/// And of requests.
const KIALI_HTTP: [&str; 2] = ["request_protocol", "response_code"];

/// A route for each outcome, by path; no route for any other path.
fn outcomes(routes: &mut ServiceRoutes) {
    let on = |path: &str, to: &str| {
        let mut on = route(path, vec![weighted(to, 1)]);
        on.matches = vec![HttpMatch { uri: Some(RouteMatch::Exact(path.into())), ..HttpMatch::default() }];
        on
    };
    let mut abort = on("/abort", "v1");
    abort.fault = Fault { delay: None, abort: Some((AbortStatus::Http(418), 1_000_000)) };
    let mut redirect = on("/redirect", "v1");
    redirect.action =
        RouteAction::Redirect(Redirect { code: 302, uri: None, authority: None, scheme: None, port: None });
    routes.subsets.push(subset("empty"));
    routes.http =
        vec![on("/ok", "v1"), on("/never", "v1"), on("/uh", "empty"), on("/nc", "unknown"), abort, redirect];
}

/// Sends a request as it stands and reads the answer to its end.
async fn send(bench: &Bench, text: &str) -> String {
    let mut io = bench.raw().await;
    io.write_all(text.as_bytes()).await.unwrap();
    let mut back = Vec::new();
    let _ = io.read_to_end(&mut back).await;
    String::from_utf8_lossy(&back).into_owned()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
}

/// Labels of every series of a family.
fn series(bench: &Bench, family: &str) -> Vec<BTreeMap<String, String>> {
    let text = bench.metrics();
    let lines = text.lines().filter_map(|line| line.strip_prefix(family)?.strip_prefix('{'));
    let parsed = |line: &str| {
        let inside = line.rsplit_once('}').unwrap().0;
        let pairs = inside.split("\",").map(|pair| pair.split_once("=\"").unwrap());
        pairs.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned())).collect()
    };
    lines.map(parsed).collect()
}

/// Code and flags of the requests that were counted.
fn flags(bench: &Bench) -> Vec<(String, String)> {
    let of = |s: BTreeMap<_, String>| (s["response_code"].clone(), s["response_flags"].clone());
    series(bench, "istio_requests_total").into_iter().map(of).collect()
}

fn is_kialis(series: &BTreeMap<String, String>, more: &[&str]) {
    for label in KIALI.iter().chain(more) {
        assert!(series.get(*label).is_some_and(|value| !value.is_empty()), "{label} of {series:?}");
    }
}

#[test]
fn every_outcome_of_a_request_has_envoys_code_and_flags_and_all_labels_that_kiali_reads() {
    for (request, code, flag) in [
        (get("/ok"), "200", "-"),
        (get("/redirect"), "302", "-"),
        (get("/ok").replace("host", "x-bad: 1\r\nhost"), "403", "-"),
        (get("/uh"), "503", "UH"),
        (get("/nc"), "503", "NC"),
        (get("/other"), "404", "NR"),
        (get("/abort"), "418", "FI"),
        (get("/.././x"), "400", "DPE"),
        (get("/ok").replace("GET ", "GET  "), "400", "DPE"),
    ] {
        Bench::new(outcomes).run(async |bench| {
            bench.put_policy(policy_deny_header("x-bad"));
            let answer = send(bench, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{request}{answer}");
            bench.until_metric("istio_requests_total{").await;
            assert_eq!(flags(bench), [(code.to_owned(), flag.to_owned())], "{request}");
            for family in ["istio_requests_total", "istio_request_duration_milliseconds_count"] {
                series(bench, family).iter().for_each(|s| is_kialis(s, &KIALI_HTTP));
            }
        });
    }
}

#[test]
fn an_end_that_breaks_off_is_flagged_as_the_upstreams_or_the_clients() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
    for (app, code) in [(App::Raw(cut), "200"), (App::Raw(""), "503")] {
        Bench::with_app(AppProtocol::Http11, app, outcomes).run(async |bench| {
            send(bench, &get("/ok")).await;
            bench.until_metric("istio_requests_total{").await;
            assert_eq!(flags(bench), [(code.to_owned(), "UC".to_owned())]);
            assert!(bench.metrics().contains("refusals_total{reason=\"upstream_reset\"} 1"));
        });
    }
    Bench::new(outcomes).run(async |bench| {
        let mut io = bench.raw().await;
        io.write_all(get("/never").as_bytes()).await.unwrap();
        bench.until_upstream_requests(1).await;
        drop(io);
        bench.until_metric("istio_requests_total{").await;
        assert_eq!(flags(bench), [("0".to_owned(), "DC".to_owned())]);
        series(bench, "istio_requests_total").iter().for_each(|s| is_kialis(s, &KIALI_HTTP));
    });
}

fn deny_port() -> L7Policy {
    let to = vec![L7Operation { ports: vec![80], ..L7Operation::default() }];
    L7Policy { rules: vec![L7Rule { to, ..L7Rule::default() }], ..policy_deny_header("unused") }
}

#[test]
fn every_outcome_of_a_connection_has_all_labels_that_kiali_reads() {
    for (what, flag) in [("carried", "-"), ("denied", "DENY"), ("failed", "CONNECT")] {
        Bench::with_app(AppProtocol::Tcp, App::Greeter, |_| {}).run(async |bench| {
            if what == "denied" {
                bench.put_policy(deny_port());
            }
            for version in ["v1", "v2"] {
                bench.break_dials(version, what == "failed");
            }
            let back = send(bench, if what == "carried" { "x" } else { "" }).await;
            assert_eq!(back, if what == "carried" { "220 x" } else { "" });
            bench.until_metric(&format!("response_flags=\"{flag}\"")).await;
            let closed = series(bench, "istio_tcp_connections_closed_total");
            assert!(closed.iter().any(|s| s["response_flags"] == flag), "{what}: {closed:?}");
            for family in ["opened_total", "closed_total", "failed_total"] {
                let family = series(bench, &format!("istio_tcp_connections_{family}"));
                family.iter().for_each(|s| is_kialis(s, &["request_protocol"]));
            }
            for family in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
                let family = series(bench, family);
                assert!(!family.is_empty());
                family.iter().for_each(|s| is_kialis(s, &["request_protocol"]));
            }
        });
    }
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of the access log that a test leaves.
fn logged(bench: Bench, test: impl AsyncFnOnce(&Bench)) -> Vec<String> {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || bench.run(test));
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().filter(|line| line.contains(" access: ")).map(str::to_owned).collect()
}

#[test]
fn the_access_log_has_one_line_per_request_with_both_identities_and_what_denied_it() {
    let lines = logged(Bench::new(outcomes), async |bench| {
        bench.put_policy(policy_deny_header("x-bad"));
        send(bench, &get("/ok")).await;
        send(bench, &get("/ok").replace("host", "x-bad: 1\r\nhost")).await;
        bench.until_metric("response_code=\"403\"").await;
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    let account = |name: &str| format!("identity=spiffe://cluster.local/ns/default/sa/{name} ");
    for part in [
        "request complete",
        "src.addr=10.0.0.9:4000",
        &format!("src.{}", account("client")),
        "dst.service=\"web.default.svc.cluster.local\"",
        "dst.workload=\"v1\"",
        "method=GET path=/ok status=200",
        "flags=\"-\" reason=\"-\"",
        "route=\"/ok\" attempts=1",
        "duration_ms=",
    ] {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
    for part in
        ["status=403", "reason=\"policy_denied\"", "default/deny", &format!("src.{}", account("client"))]
    {
        assert!(lines[1].contains(part), "{part} in {}", lines[1]);
    }
    assert!(!lines[1].contains("dst.identity"), "no endpoint was asked: {}", lines[1]);
}

#[test]
fn the_access_log_names_the_policy_that_denied_a_connection() {
    let lines = logged(Bench::with_app(AppProtocol::Tcp, App::Greeter, |_| {}), async |bench| {
        send(bench, "x").await;
        let closed =
            |line: &str| line.starts_with("istio_tcp_connections_closed_total{") && line.ends_with(" 1");
        while !bench.metrics().lines().any(closed) {
            tokio::task::yield_now().await;
        }
        bench.put_policy(deny_port());
        send(bench, "").await;
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("reason=\"-\"") && lines[0].contains("bytes_sent=5"), "{}", lines[0]);
    assert!(
        lines[1].contains("reason=\"policy_denied\"") && lines[1].contains("default/deny"),
        "{}",
        lines[1]
    );
}
