//! The engine end to end in one process: client ⇄ waypoint ⇄ applications over real sockets. Tunnels
//! are tested in `tunnel.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{App, Bench, get, policy_deny_header, route, subset, weighted};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use mesh_core::model::{
    AppProtocol, StringMatch,
    l7::{
        AbortStatus, DirectResponse, Fault, HeaderOps, HttpMatch, L7Operation, L7Rule, Redirect,
        RetryCondition, RetryPolicy, Rewrite, RouteAction, RouteMatch,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn default_route_reaches_the_service_and_adds_request_headers() {
    Bench::new(|_| {}).run(async |bench| {
        let (status, headers, body) = bench.get("/hello?x=1").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.starts_with("v1 GET /hello?x=1") || body.starts_with("v2 GET /hello?x=1"), "{body}");
        assert!(headers.get("seen-request-id").is_some());
        assert_eq!(headers["seen-forwarded-for"], "10.0.0.9");
        assert_eq!(headers["seen-host"], "web");
        assert_eq!(headers["seen-traceparent"], "00-aa-bb-01");
    });
}

#[test]
fn weights_split_requests_90_to_10() {
    Bench::new(|routes| routes.http = vec![route("canary", vec![weighted("v1", 90), weighted("v2", 10)])])
        .run(async |bench| {
            let mut v2 = 0;
            for _ in 0..1000 {
                v2 += u32::from(bench.get("/").await.2.starts_with("v2"));
            }
            assert!((53..=147).contains(&v2), "a tenth of 1000, five deviations: {v2}");
        });
}

#[test]
fn header_match_selects_a_subset_and_others_fall_through() {
    Bench::new(|routes| {
        let mut beta = route("beta", vec![weighted("v2", 1)]);
        beta.matches = vec![HttpMatch {
            headers: vec![("x-beta".into(), RouteMatch::Exact("yes".into()))],
            ..HttpMatch::default()
        }];
        routes.http = vec![beta, route("rest", vec![weighted("v1", 1)])];
    })
    .run(async |bench| {
        assert!(bench.get("/").await.2.starts_with("v1"));
        let request = get("/").header("x-beta", "yes").body(Empty::new()).unwrap();
        assert!(bench.send(request).await.2.starts_with("v2"));
    });
}

#[test]
fn rewrite_replaces_prefix_and_host_and_header_operations_apply() {
    Bench::new(|routes| {
        let mut r = route("r", vec![weighted("v1", 1)]);
        r.matches = vec![HttpMatch { uri: Some(RouteMatch::Prefix("/api".into())), ..HttpMatch::default() }];
        r.rewrite =
            Some(Rewrite { uri: Some("/v9".into()), uri_regex: None, authority: Some("inner".into()) });
        r.response_headers = HeaderOps {
            set: vec![("x-by".into(), "culvert".into())],
            remove: vec!["x-app".into()],
            ..HeaderOps::default()
        };
        r.request_headers =
            HeaderOps { add: vec![("traceparent".into(), "more".into())], ..HeaderOps::default() };
        routes.http = vec![r];
    })
    .run(async |bench| {
        let (status, headers, body) = bench.get("/api/things?q=1").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.starts_with("v1 GET /v9/things?q=1"), "{body}");
        assert_eq!(headers["seen-host"], "inner");
        assert_eq!(headers["x-by"], "culvert");
        assert!(headers.get("x-app").is_none());
        let (status, headers, _) = bench.get("/other").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(headers["x-culvert-reason"], "no_route");
    });
}

#[test]
fn redirects_direct_responses_and_faults_answer_without_an_upstream() {
    Bench::new(|routes| {
        let on = |path: &str| {
            vec![HttpMatch { uri: Some(RouteMatch::Exact(path.into())), ..HttpMatch::default() }]
        };
        let mut redirect = route("redirect", vec![]);
        redirect.matches = on("/old");
        redirect.action = RouteAction::Redirect(Redirect {
            code: 308,
            uri: Some("/new".into()),
            authority: None,
            scheme: None,
            port: None,
        });
        let mut direct = route("direct", vec![]);
        direct.matches = on("/direct");
        direct.action = RouteAction::Direct(DirectResponse { status: 418, body: "teapot".into() });
        let mut abort = route("abort", vec![weighted("v1", 1)]);
        abort.matches = on("/abort");
        abort.fault = Fault {
            delay: Some((Duration::from_millis(30), 1_000_000)),
            abort: Some((AbortStatus::Http(555), 1_000_000)),
        };
        routes.http = vec![redirect, direct, abort];
    })
    .run(async |bench| {
        let (status, headers, _) = bench.get("/old?a=b").await;
        assert_eq!((status.as_u16(), headers["location"].to_str().unwrap()), (308, "http://web/new?a=b"));
        let (status, _, body) = bench.get("/direct").await;
        assert_eq!((status.as_u16(), body.as_str()), (418, "teapot"));
        let begun = Instant::now();
        assert_eq!(bench.get("/abort").await.0.as_u16(), 555);
        assert!(begun.elapsed() >= Duration::from_millis(30));
        assert_eq!(bench.upstream_requests(), 0);
    });
}

#[test]
fn retries_repeat_until_the_upstream_answers_and_then_stop() {
    Bench::new(|routes| {
        let mut r = route("r", vec![weighted("v1", 1)]);
        r.retries = RetryPolicy {
            attempts: 3,
            retry_on: vec![RetryCondition::Status5xx],
            backoff: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
        routes.http = vec![r];
    })
    .run(async |bench| {
        bench.fail_next(2);
        let request = Request::post("/").header("host", "web").body(Full::from("payload")).unwrap();
        let (status, _, body) = bench.send(request).await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.ends_with("payload"), "the body was sent again: {body}");
        assert_eq!(bench.upstream_requests(), 3);
        bench.fail_next(9);
        assert_eq!(bench.get("/").await.0.as_u16(), 503);
        assert_eq!(bench.upstream_requests(), 3 + 4, "one try and three retries");
        assert!(bench.metrics().contains("response_flags=\"URX\""));
    });
}

#[test]
fn route_timeout_answers_504() {
    Bench::new(|routes| {
        let mut r = route("r", vec![weighted("v1", 1)]);
        r.timeout = Some(Duration::from_millis(50));
        routes.http = vec![r];
    })
    .run(async |bench| {
        let (status, headers, _) = bench.get("/never").await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(headers["x-culvert-reason"], "route_timeout");
        assert!(bench.metrics().contains("response_flags=\"UT\""));
    });
}

#[test]
fn policy_denies_with_403_and_names_the_reason_and_its_removal_allows_again() {
    let deny = policy_deny_header("x-bad");
    Bench::new(|_| {}).run(async |bench| {
        bench.put_policy(deny.clone());
        let bad = || get("/").header("x-bad", "1").body(Empty::new()).unwrap();
        let (status, headers, body) = bench.send(bad()).await;
        assert_eq!((status, body.as_str()), (StatusCode::FORBIDDEN, "RBAC: access denied"));
        assert_eq!(headers["x-culvert-reason"], "policy_denied");
        assert_eq!(bench.get("/").await.0, StatusCode::OK);
        bench.remove_policy(&deny.key);
        assert_eq!(bench.send(bad()).await.0, StatusCode::OK);
        let mut allow = deny.clone();
        allow.action = mesh_core::model::PolicyAction::Allow;
        allow.rules = vec![L7Rule {
            to: vec![L7Operation {
                methods: vec![StringMatch::Exact("POST".into())],
                ..L7Operation::default()
            }],
            ..L7Rule::default()
        }];
        bench.put_policy(allow);
        let (status, headers, _) = bench.get("/").await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert_eq!(headers["x-culvert-reason"], "no_allow_matched");
    });
}

#[test]
fn unknown_subset_and_missing_endpoints_answer_503_with_different_reasons() {
    Bench::new(|routes| {
        routes.subsets.push(subset("v3"));
        let mut empty = route("empty", vec![weighted("v3", 1)]);
        empty.matches =
            vec![HttpMatch { uri: Some(RouteMatch::Exact("/empty".into())), ..HttpMatch::default() }];
        routes.http = vec![empty, route("unknown", vec![weighted("v4", 1)])];
    })
    .run(async |bench| {
        let (status, headers, _) = bench.get("/").await;
        assert_eq!(
            (status.as_u16(), headers["x-culvert-reason"].to_str().unwrap()),
            (503, "unknown_destination")
        );
        let (status, headers, _) = bench.get("/empty").await;
        assert_eq!(
            (status.as_u16(), headers["x-culvert-reason"].to_str().unwrap()),
            (503, "no_healthy_endpoint")
        );
    });
}

#[test]
fn connection_failures_are_retried_elsewhere_and_reported_when_nothing_is_left() {
    Bench::new(|_| {}).run(async |bench| {
        bench.break_dials("v1", true);
        for _ in 0..20 {
            assert!(bench.get("/").await.2.starts_with("v2"));
        }
        bench.break_dials("v2", true);
        assert_eq!(bench.get("/kept").await.0, StatusCode::OK, "a kept connection needs no dial");
    });
    Bench::new(|_| {}).run(async |bench| {
        bench.break_dials("v1", true);
        bench.break_dials("v2", true);
        let (status, headers, _) = bench.get("/down").await;
        assert_eq!((status.as_u16(), headers["x-culvert-reason"].to_str().unwrap()), (503, "connect_failed"));
        assert_eq!(bench.upstream_requests(), 0);
    });
}

#[test]
fn request_limit_answers_503_and_frees_again() {
    Bench::new(|routes| routes.traffic_policy.max_requests = Some(1)).run(async |bench| {
        let slow = bench.spawn_get("/never");
        bench.until_upstream_requests(1).await;
        let (status, headers, _) = bench.get("/").await;
        assert_eq!((status.as_u16(), headers["x-culvert-reason"].to_str().unwrap()), (503, "limit_reached"));
        assert!(bench.metrics().contains("response_flags=\"UO\""));
        slow.abort();
        let _ = slow.await;
        while bench.get("/").await.0 != StatusCode::OK {}
    });
}

#[test]
fn http2_prior_knowledge_and_grpc_trailers_pass_through() {
    Bench::with(AppProtocol::Grpc, |_| {}).run(async |bench| {
        let mut client = bench.http2().await;
        let request = Request::post("http://web/grpc")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let response =
            client.send_request(request.body(Full::<bytes::Bytes>::from("ping")).unwrap()).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "5");
        assert!(String::from_utf8_lossy(&collected.to_bytes()).ends_with("ping"));
        bench.until_metric("grpc_response_status=\"5\"").await;
    });
}

#[test]
fn websocket_switches_protocols_and_carries_bytes_both_ways() {
    Bench::new(|_| {}).run(async |bench| {
        let mut io = bench.raw().await;
        io.write_all(b"GET /ws HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        io.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        io.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"hello");
    });
}

#[test]
fn large_bodies_stream_both_ways() {
    Bench::new(|_| {}).run(async |bench| {
        let body = vec![7_u8; 20 << 20];
        let request = Request::post("/echo").header("host", "web").body(Full::from(body.clone())).unwrap();
        let (status, _, _) = bench.send_raw(request, |echoed| assert!(echoed == body)).await;
        assert_eq!(status, StatusCode::OK);
    });
}

#[test]
fn tcp_is_relayed_with_half_close_when_the_port_declares_it() {
    Bench::with_app(AppProtocol::Tcp, App::Tcp, |_| {}).run(async |bench| {
        let mut io = bench.raw().await;
        io.write_all(b"some bytes").await.unwrap();
        io.shutdown().await.unwrap();
        let mut back = String::new();
        io.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "some bytes, all of them");
        let closed = |text: &str| text.contains("istio_tcp_connections_closed_total{");
        while !closed(&bench.metrics()) {
            tokio::task::yield_now().await;
        }
        let text = bench.metrics();
        for (name, value) in [
            ("istio_tcp_received_bytes_total", 10),
            ("istio_tcp_sent_bytes_total", 23),
            ("istio_tcp_connections_opened_total", 1),
            ("istio_tcp_connections_closed_total", 1),
        ] {
            let line = text.lines().find(|l| l.starts_with(&format!("{name}{{"))).unwrap();
            assert!(line.ends_with(&format!(" {value}")), "{line}");
            for label in [
                "reporter=\"waypoint\"",
                "source_principal=\"spiffe://cluster.local/ns/default/sa/client\"",
                "destination_service=\"web.default.svc.cluster.local\"",
                "request_protocol=\"tcp\"",
                "response_flags=\"-\"",
            ] {
                assert!(line.contains(label), "{label}: {line}");
            }
        }
        assert!(!text.contains("istio_tcp_connections_failed_total{"));
    });
}

#[test]
fn tcp_that_policy_denies_is_closed_and_counted_as_failed_with_its_flag() {
    Bench::with_app(AppProtocol::Tcp, App::Tcp, |_| {}).run(async |bench| {
        let mut deny = policy_deny_header("unused");
        deny.rules = vec![L7Rule {
            to: vec![L7Operation { ports: vec![80], ..L7Operation::default() }],
            ..L7Rule::default()
        }];
        bench.put_policy(deny);
        let mut io = bench.raw().await;
        let mut back = String::new();
        let _ = io.read_to_string(&mut back).await;
        assert_eq!((back.as_str(), bench.upstream_connections()), ("", 0));
        let text = bench.metrics();
        let failed = text.lines().find(|l| l.starts_with("istio_tcp_connections_failed_total{")).unwrap();
        assert!(failed.contains("response_flags=\"DENY\"") && failed.ends_with(" 1"), "{failed}");
    });
}

#[test]
fn an_open_tcp_flow_is_closed_when_policy_forbids_it_and_survives_other_changes() {
    Bench::with_app(AppProtocol::Tcp, App::Greeter, |_| {}).run(async |bench| {
        let mut io = bench.raw().await;
        let mut greeting = [0; 5];
        io.read_exact(&mut greeting).await.unwrap();
        let deny = |port| {
            let mut deny = policy_deny_header("unused");
            let to = vec![L7Operation { ports: vec![port], ..L7Operation::default() }];
            deny.rules = vec![L7Rule { to, ..L7Rule::default() }];
            deny
        };
        bench.put_policy(deny(81));
        let closed = tokio::time::timeout(Duration::from_millis(200), io.read_u8()).await;
        assert!(closed.is_err(), "a policy about another port closes nothing");
        bench.put_policy(deny(80));
        assert!(io.read_u8().await.is_err());
        bench.until_metric("culvert_waypoint_refusals_total{reason=\"policy_changed\"} 1").await;
        assert!(bench.metrics().contains("response_flags=\"DENY\""));
    });
}

#[test]
fn a_client_that_waits_for_the_server_is_relayed_after_the_sniff_deadline() {
    Bench::with_app(AppProtocol::Unknown, App::Greeter, |_| {}).run(async |bench| {
        let mut io = bench.raw().await;
        let mut greeting = [0; 5];
        io.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 x");
        assert!(bench.metrics().contains("culvert_waypoint_sniff_timeouts_total 1"));
    });
}

#[test]
fn configuration_changes_fail_no_request() {
    Bench::new(|routes| routes.http = vec![route("a", vec![weighted("v1", 1)])]).run(async |bench| {
        for round in 0..50 {
            let version = if round % 2 == 0 { "v2" } else { "v1" };
            bench.put_routes(|routes| routes.http = vec![route("b", vec![weighted(version, 1)])]);
            for _ in 0..5 {
                let (status, _, body) = bench.get("/").await;
                assert_eq!(status, StatusCode::OK);
                assert!(body.starts_with(version), "takes effect at once: {body}");
            }
        }
    });
}

#[test]
fn configuration_changes_fail_no_request_that_is_under_way() {
    Bench::new(|routes| routes.http = vec![route("a", vec![weighted("v1", 1)])]).run(async |bench| {
        let load: Vec<_> = (0..8).map(|_| bench.spawn_load("/", 100)).collect();
        let mut changes = 0;
        while !load.iter().all(tokio::task::JoinHandle::is_finished) {
            let version = if changes % 2 == 0 { "v2" } else { "v1" };
            bench.put_routes(|routes| routes.http = vec![route("b", vec![weighted(version, 1)])]);
            changes += 1;
            let seen = bench.upstream_requests();
            bench.until_upstream_requests((seen + 10).min(800)).await;
            tokio::task::yield_now().await;
        }
        for client in load {
            client.await.unwrap();
        }
        assert!(changes >= 20, "{changes} changes while requests were under way");
        let text = bench.metrics();
        let failed = |line: &&str| line.starts_with("istio_requests_total{") && !line.contains("\"200\"");
        assert_eq!((bench.upstream_requests(), text.lines().find(failed)), (800, None));
    });
}

#[test]
fn a_bad_expression_is_refused_by_itself_and_the_last_good_routes_stay() {
    Bench::new(|routes| routes.http = vec![route("good", vec![weighted("v2", 1)])]).run(async |bench| {
        bench.put_routes(|routes| {
            let mut bad = route("bad", vec![weighted("v1", 1)]);
            bad.matches =
                vec![HttpMatch { uri: Some(RouteMatch::Regex("(".into())), ..HttpMatch::default() }];
            routes.http = vec![bad];
        });
        assert!(bench.get("/").await.2.starts_with("v2"));
        assert!(bench.metrics().contains("culvert_waypoint_rejected_routes_total 1"));
    });
}

#[test]
fn dot_segments_cannot_dodge_a_path_policy() {
    Bench::new(|_| {}).run(async |bench| {
        let mut deny = policy_deny_header("unused");
        deny.rules = vec![L7Rule {
            to: vec![L7Operation {
                paths: vec![StringMatch::Prefix("/admin".into())],
                ..L7Operation::default()
            }],
            ..L7Rule::default()
        }];
        bench.put_policy(deny);
        for path in ["/admin", "/x/../admin", "/%61dmin", "/./admin"] {
            assert_eq!(bench.get(path).await.0, StatusCode::FORBIDDEN, "{path}");
        }
        assert_eq!(bench.get("/public").await.0, StatusCode::OK);
    });
}

#[test]
fn traffic_for_services_bound_elsewhere_is_refused() {
    Bench::new(|_| {}).run(async |bench| {
        assert!(bench.resolve("10.96.0.1:80").is_ok());
        let refused = bench.resolve("10.96.0.2:80").unwrap_err();
        assert_eq!(refused.reason, mesh_core::outcome::Reason::WrongDestination);
        assert!(bench.resolve("web.default.svc.cluster.local:80").is_ok());
        assert!(bench.resolve("10.1.2.3:80").is_err());
    });
}
