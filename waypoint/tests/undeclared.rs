//! Ports whose protocol nobody declared: what the first bytes decide, and that policy holds either way.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{App, Bench, policy_deny_header, route, weighted};
use mesh_core::model::{
    AppProtocol, PolicyAction, StringMatch,
    l7::{L7Operation, L7Policy, L7Rule},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn undeclared(app: App) -> Bench {
    Bench::with_app(AppProtocol::Unknown, app, |routes| {
        routes.http = vec![route("only", vec![weighted("v1", 1)])];
    })
}

fn on_admin(action: PolicyAction, port: u16) -> L7Policy {
    let paths = vec![StringMatch::Prefix("/admin".into())];
    let operation = match action {
        PolicyAction::Deny => L7Operation { paths, ports: vec![port], ..L7Operation::default() },
        PolicyAction::Allow => L7Operation { not_paths: paths, ports: vec![port], ..L7Operation::default() },
    };
    let rules = vec![L7Rule { to: vec![operation], ..L7Rule::default() }];
    L7Policy { action, rules, ..policy_deny_header("unused") }
}

/// What comes back for these bytes, to the end of the connection.
async fn answer(bench: &Bench, bytes: &str) -> String {
    let mut io = bench.raw().await;
    io.write_all(bytes.as_bytes()).await.unwrap();
    let mut back = Vec::new();
    let _ = io.read_to_end(&mut back).await;
    String::from_utf8_lossy(&back).into_owned()
}

/// `GET /admin`, disguised: what begins it, and whether it is taken for HTTP all the same.
const DISGUISES: [(&str, bool); 4] =
    [("GET /admin", true), ("\r\nGET /admin", true), ("GET  /admin", true), ("get /admin", false)];
const REST: &str = " HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";

#[test]
fn a_policy_about_http_is_not_dodged_by_bytes_that_do_not_look_like_it() {
    for action in [PolicyAction::Deny, PolicyAction::Allow] {
        for (start, is_http) in DISGUISES {
            undeclared(App::Http1).run(async |bench| {
                bench.put_policy(on_admin(action, 80));
                let back = answer(bench, &format!("{start}{REST}")).await;
                assert!(!back.contains("200 OK"), "{start:?}: {back}");
                assert_eq!(back.starts_with("HTTP/1.1 40"), is_http, "{start:?}: {back}");
                assert_eq!(bench.upstream_connections(), 0, "{start:?}");
                if !is_http {
                    let reason = match action {
                        PolicyAction::Deny => "policy_denied",
                        PolicyAction::Allow => "no_allow_matched",
                    };
                    bench.until_metric(&format!("refusals_total{{reason=\"{reason}\"}} 1")).await;
                    assert!(bench.metrics().contains("response_flags=\"DENY\""));
                }
            });
        }
    }
}

#[test]
fn without_a_policy_about_this_port_undeclared_bytes_are_relayed() {
    for policy in [None, Some(on_admin(PolicyAction::Deny, 81))] {
        for (start, _) in DISGUISES {
            let policy = policy.clone();
            undeclared(App::Http1).run(async |bench| {
                policy.into_iter().for_each(|policy| bench.put_policy(policy));
                let back = answer(bench, &format!("{start}{REST}")).await;
                // Several spaces are no HTTP for the strict parser; what is no HTTP at all the
                // application itself answers.
                let wanted = if start.contains("  ") { "HTTP/1.1 400" } else { "HTTP/1.1 200 OK" };
                assert!(back.starts_with(wanted), "{start:?}: {back}");
            });
        }
    }
}

#[test]
fn silence_does_not_dodge_a_policy_about_http() {
    undeclared(App::Greeter).run(async |bench| {
        bench.put_policy(on_admin(PolicyAction::Deny, 80));
        assert_eq!((answer(bench, "").await.as_str(), bench.upstream_connections()), ("", 0));
        bench.until_metric("refusals_total{reason=\"policy_denied\"} 1").await;
    });
    undeclared(App::Greeter).run(async |bench| {
        bench.put_policy(on_admin(PolicyAction::Deny, 81));
        let mut greeting = [0; 5];
        bench.raw().await.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 x");
    });
}
