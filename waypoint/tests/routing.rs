//! VirtualService and DestinationRule features, each with its negative twin, over real sockets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use common::{Bench, Reply, get, policy_deny_header, route, subset, weighted};
use http::{Request, StatusCode};
use http_body_util::{Empty, Full};
use mesh_core::model::{
    AppProtocol, PolicyAction, StringMatch,
    l7::{
        AbortStatus, Fault, HeaderOps, HttpMatch, L7Operation, L7Policy, L7Rule, L7Source, LbAlgorithm,
        Redirect, RetryCondition, RetryPolicy, Rewrite, RouteAction, RouteMatch,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A waypoint that sends what matches to `v2` and the rest to `v1`.
fn matching(m: HttpMatch) -> Bench {
    Bench::new(|routes| {
        let mut wanted = route("wanted", vec![weighted("v2", 1)]);
        wanted.matches = vec![m];
        routes.http = vec![wanted, route("rest", vec![weighted("v1", 1)])];
    })
}

fn is(exact: &str) -> RouteMatch {
    RouteMatch::Exact(exact.into())
}

async fn goes(bench: &Bench, version: &str, request: http::request::Builder) {
    let (status, _, body) = bench.send(request.body(Empty::new()).unwrap()).await;
    assert!(status == StatusCode::OK && body.starts_with(version), "{version}: {status} {body}");
}

#[test]
fn a_regex_matches_the_whole_path_without_the_query_and_nothing_less() {
    let uri = Some(RouteMatch::Regex("/item/[0-9]+".into()));
    matching(HttpMatch { uri, ..HttpMatch::default() }).run(async |bench| {
        goes(bench, "v2", get("/item/42")).await;
        goes(bench, "v2", get("/item/42?x=y")).await;
        for other in ["/item/42/more", "/item/", "/the/item/42", "/item/four"] {
            goes(bench, "v1", get(other)).await;
        }
    });
}

#[test]
fn paths_match_exactly_or_by_prefix_and_ignore_case_only_when_told() {
    for (uri, ignore_uri_case, yes, no) in [
        (is("/A"), false, vec!["/A", "/A?q=1"], vec!["/a", "/A/"]),
        (is("/A"), true, vec!["/A", "/a"], vec!["/b"]),
        (RouteMatch::Prefix("/api".into()), false, vec!["/api", "/api/x"], vec!["/API", "/x/api"]),
        (RouteMatch::Prefix("/api".into()), true, vec!["/API/x"], vec!["/ap"]),
    ] {
        matching(HttpMatch { uri: Some(uri), ignore_uri_case, ..HttpMatch::default() }).run(async |bench| {
            for path in yes {
                goes(bench, "v2", get(path)).await;
            }
            for path in no {
                goes(bench, "v1", get(path)).await;
            }
        });
    }
}

#[test]
fn method_query_and_headers_select_a_route_and_their_absence_does_not() {
    matching(HttpMatch { method: Some(is("DELETE")), ..HttpMatch::default() }).run(async |bench| {
        goes(bench, "v2", Request::delete("/").header("host", "web")).await;
        goes(bench, "v1", get("/")).await;
    });
    matching(HttpMatch { query: vec![("v".into(), is("2"))], ..HttpMatch::default() }).run(async |bench| {
        goes(bench, "v2", get("/?a=b&v=2")).await;
        goes(bench, "v1", get("/?v=22")).await;
        goes(bench, "v1", get("/")).await;
    });
    let headers = vec![("x-a".into(), RouteMatch::Presence), ("x-b".into(), RouteMatch::Prefix("be".into()))];
    let without_headers = vec![("x-no".into(), RouteMatch::Presence)];
    matching(HttpMatch { headers, without_headers, ..HttpMatch::default() }).run(async |bench| {
        let both = || get("/").header("x-a", "").header("x-b", "beta");
        goes(bench, "v2", both()).await;
        goes(bench, "v1", get("/").header("x-a", "").header("x-b", "alpha")).await;
        goes(bench, "v1", get("/").header("x-b", "beta")).await;
        goes(bench, "v1", both().header("x-no", "1")).await;
    });
}

#[test]
fn authority_selects_a_route_without_regard_to_case() {
    matching(HttpMatch { authority: Some(is("canary.example")), ..HttpMatch::default() }).run(
        async |bench| {
            goes(bench, "v2", Request::get("/").header("host", "Canary.example")).await;
            goes(bench, "v1", get("/")).await;
        },
    );
}

#[test]
fn source_labels_and_namespace_are_those_of_the_clients_workload() {
    for (app, namespace, version) in
        [("client", "default", "v2"), ("other", "default", "v1"), ("client", "elsewhere", "v1")]
    {
        let source_labels = BTreeMap::from([("app".into(), app.into())]);
        let source_namespace = Some(namespace.into());
        matching(HttpMatch { source_labels, source_namespace, ..HttpMatch::default() })
            .run(async |bench| goes(bench, version, get("/")).await);
    }
}

#[test]
fn the_port_that_was_dialled_selects_a_route() {
    for (port, version) in [(80, "v2"), (81, "v1")] {
        matching(HttpMatch { port: Some(port), ..HttpMatch::default() })
            .run(async |bench| goes(bench, version, get("/")).await);
    }
}

#[test]
fn a_regex_rewrite_replaces_what_it_matches_and_leaves_other_paths() {
    Bench::new(|routes| {
        let mut r = route("r", vec![weighted("v1", 1)]);
        let uri_regex = Some((r"/users/(\d+)".into(), r"/u/\1".into()));
        r.rewrite = Some(Rewrite { uri: None, uri_regex, authority: None });
        routes.http = vec![r];
    })
    .run(async |bench| {
        let (_, headers, body) = bench.get("/users/7/posts?a=b").await;
        assert!(body.starts_with("v1 GET /u/7/posts?a=b "), "{body}");
        assert_eq!(headers["seen-host"], "web", "the host stays");
        assert!(bench.get("/users/x").await.2.starts_with("v1 GET /users/x "));
    });
}

#[test]
fn a_redirect_answers_only_what_matches_and_keeps_what_it_does_not_name() {
    Bench::new(|routes| {
        let mut r = route("r", vec![]);
        r.matches = vec![HttpMatch { uri: Some(is("/old")), ..HttpMatch::default() }];
        let authority = Some("new.example".into());
        r.action =
            RouteAction::Redirect(Redirect { code: 302, uri: None, authority, scheme: None, port: None });
        routes.http = vec![r, route("rest", vec![weighted("v1", 1)])];
    })
    .run(async |bench| {
        let (status, headers, _) = bench.get("/old?q=1").await;
        assert_eq!(
            (status.as_u16(), &headers["location"]),
            (302, &"http://new.example/old?q=1".parse().unwrap())
        );
        let (status, headers, _) = bench.get("/older").await;
        assert!(status == StatusCode::OK && !headers.contains_key("location"));
    });
}

fn ops(set: &str, add: &str, remove: &str) -> HeaderOps {
    HeaderOps {
        set: vec![(format!("x-{set}").into(), set.into())],
        add: vec![("x-many".into(), add.into())],
        remove: vec![format!("x-{remove}").into()],
    }
}

#[test]
fn header_operations_of_route_and_destination_change_request_and_response() {
    Bench::new(|routes| {
        let mut destination = weighted("v1", 1);
        destination.request_headers = ops("by-destination", "destination", "secret-a");
        destination.response_headers = ops("from-destination", "destination", "app");
        let mut r = route("r", vec![destination]);
        r.matches = vec![HttpMatch { uri: Some(is("/changed")), ..HttpMatch::default() }];
        r.request_headers = ops("by-route", "route", "secret-b");
        r.response_headers = ops("from-route", "route", "seen-nothing");
        routes.http = vec![r, route("rest", vec![weighted("v1", 1)])];
    })
    .run(async |bench| {
        let request = |path| {
            let headers = get(path).header("x-many", "client").header("x-by-route", "client");
            headers.header("x-secret-a", "1").header("x-secret-b", "1").body(Empty::new()).unwrap()
        };
        let all = |(_, headers, _): &Reply, name: &str| {
            let values = headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned());
            values.collect::<Vec<_>>()
        };
        let changed = bench.send(request("/changed")).await;
        assert_eq!(all(&changed, "seen-many"), ["client", "destination", "route"]);
        assert_eq!(all(&changed, "seen-by-route"), ["by-route"], "set overwrites");
        assert_eq!(all(&changed, "seen-by-destination"), ["by-destination"]);
        assert!(all(&changed, "seen-secret-a").is_empty() && all(&changed, "seen-secret-b").is_empty());
        assert_eq!(all(&changed, "x-many"), ["destination", "route"]);
        assert_eq!(all(&changed, "x-from-route"), ["from-route"]);
        assert_eq!(all(&changed, "x-from-destination"), ["from-destination"]);
        assert!(all(&changed, "x-app").is_empty());
        let untouched = bench.send(request("/")).await;
        assert_eq!(all(&untouched, "seen-many"), ["client"]);
        assert_eq!(all(&untouched, "seen-by-route"), ["client"]);
        assert_eq!(all(&untouched, "seen-secret-a"), ["1"]);
        assert_eq!(all(&untouched, "x-app"), ["v1"]);
        assert!(all(&untouched, "x-many").is_empty());
    });
}

fn retrying(attempts: u32, retry_on: Vec<RetryCondition>, per_try: Option<Duration>) -> Bench {
    Bench::new(|routes| {
        let mut r = route("r", vec![weighted("v1", 1)]);
        let backoff = Duration::from_millis(1);
        r.retries = RetryPolicy { attempts, per_try_timeout: per_try, retry_on, backoff };
        routes.http = vec![r];
    })
}

#[test]
fn a_try_that_takes_too_long_is_repeated_when_retry_on_says_so() {
    let limit = Some(Duration::from_millis(50));
    retrying(2, vec![RetryCondition::GatewayError], limit).run(async |bench| {
        bench.hang_next(1);
        assert_eq!(bench.get("/").await.0, StatusCode::OK);
        assert_eq!(bench.upstream_requests(), 2);
        bench.hang_next(9);
        let (status, headers, _) = bench.get("/").await;
        assert_eq!((status.as_u16(), headers["x-culvert-reason"].to_str().unwrap()), (504, "route_timeout"));
        assert_eq!(bench.upstream_requests(), 2 + 3);
    });
    retrying(2, vec![RetryCondition::ConnectFailure], limit).run(async |bench| {
        bench.hang_next(1);
        assert_eq!(bench.get("/").await.0, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(bench.upstream_requests(), 1, "a slow try is no connect-failure");
    });
}

#[test]
fn only_what_retry_on_names_is_repeated() {
    for (attempts, condition, requests) in [
        (1, RetryCondition::Status(503), 2),
        (1, RetryCondition::GatewayError, 2),
        (1, RetryCondition::Status(502), 1),
        (1, RetryCondition::Retriable4xx, 1),
        (0, RetryCondition::Status5xx, 1),
    ] {
        retrying(attempts, vec![condition], None).run(async |bench| {
            bench.fail_next(1);
            let wanted = if requests == 2 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            assert_eq!(bench.get("/").await.0, wanted, "{condition:?}");
            assert_eq!(bench.upstream_requests(), requests, "{condition:?}");
        });
    }
}

#[test]
fn a_route_timeout_leaves_quick_answers_alone() {
    Bench::new(|routes| {
        let mut r = route("r", vec![weighted("v1", 1)]);
        r.timeout = Some(Duration::from_secs(20));
        routes.http = vec![r];
    })
    .run(async |bench| {
        assert_eq!(bench.get("/").await.0, StatusCode::OK);
        assert!(!bench.metrics().contains("response_flags=\"UT\""));
    });
}

#[test]
fn faults_hit_their_percentage_and_zero_hits_nothing() {
    let faulty = |delay: u32, abort: u32| {
        Bench::new(move |routes| {
            let mut r = route("r", vec![weighted("v1", 1)]);
            r.fault = Fault {
                delay: Some((Duration::from_millis(40), delay)),
                abort: Some((AbortStatus::Http(418), abort)),
            };
            routes.http = vec![r];
        })
    };
    faulty(0, 500_000).run(async |bench| {
        let mut aborted = 0;
        for _ in 0..400 {
            aborted += u32::from(bench.get("/").await.0.as_u16() == 418);
        }
        assert!((150..=250).contains(&aborted), "half of 400, five deviations: {aborted}");
        assert_eq!(bench.upstream_requests(), 400 - aborted);
        assert!(bench.metrics().contains("response_flags=\"FI\""));
    });
    faulty(1_000_000, 0).run(async |bench| {
        let begun = Instant::now();
        assert_eq!(bench.get("/").await.0, StatusCode::OK);
        assert!(begun.elapsed() >= Duration::from_millis(40));
        assert!(bench.metrics().contains("response_flags=\"DI\""));
    });
    faulty(0, 0).run(async |bench| {
        for _ in 0..50 {
            assert_eq!(bench.get("/").await.0, StatusCode::OK);
        }
        assert!(!bench.metrics().contains("response_flags=\"DI\""));
    });
}

#[test]
fn a_grpc_call_that_is_denied_or_aborted_gets_a_grpc_status() {
    Bench::with(AppProtocol::Grpc, |routes| {
        let mut r = route("r", vec![weighted("v1", 1)]);
        r.matches = vec![HttpMatch { uri: Some(is("/abort")), ..HttpMatch::default() }];
        r.fault = Fault { delay: None, abort: Some((AbortStatus::Grpc(14), 1_000_000)) };
        routes.http = vec![r, route("rest", vec![weighted("v1", 1)])];
    })
    .run(async |bench| {
        bench.put_policy(policy_deny_header("x-bad"));
        let mut client = bench.http2().await;
        for (path, bad, status) in [("/abort", false, "14"), ("/grpc", true, "7")] {
            let mut request =
                Request::post(format!("http://web{path}")).header("content-type", "application/grpc");
            if bad {
                request = request.header("x-bad", "1");
            }
            let response =
                client.send_request(request.body(Full::<bytes::Bytes>::default()).unwrap()).await.unwrap();
            assert_eq!(
                (response.status().as_u16(), &response.headers()["grpc-status"]),
                (200, &status.parse().unwrap())
            );
        }
        assert_eq!(bench.upstream_requests(), 0);
    });
}

#[test]
fn an_upgrade_that_the_application_or_policy_refuses_stays_http() {
    Bench::new(|_| {}).run(async |bench| {
        bench.put_policy(policy_deny_header("x-bad"));
        for (path, bad, status) in [("/plain", "", "200"), ("/ws", "x-bad: 1\r\n", "403")] {
            let mut io = bench.raw().await;
            let head = format!(
                "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: Upgrade, close\r\nupgrade: websocket\r\n{bad}\r\n"
            );
            io.write_all(head.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            io.read_exact(&mut answer).await.unwrap();
            assert_eq!(std::str::from_utf8(&answer).unwrap(), format!("HTTP/1.1 {status}"), "{path}");
        }
    });
}

#[test]
fn trace_context_passes_unchanged_and_is_not_invented() {
    Bench::new(|_| {}).run(async |bench| {
        let with = get("/").header("tracestate", "vendor=1,other=2").body(Empty::new()).unwrap();
        let (_, headers, _) = bench.send(with).await;
        assert_eq!(headers["seen-traceparent"], "00-aa-bb-01");
        assert_eq!(headers["seen-tracestate"], "vendor=1,other=2");
        let without = Request::get("/").header("host", "web").body(Empty::new()).unwrap();
        let (_, headers, _) = bench.send(without).await;
        assert!(!headers.contains_key("seen-traceparent") && !headers.contains_key("seen-tracestate"));
    });
}

#[test]
fn round_robin_alternates_and_a_subset_gets_only_its_own() {
    let balanced = |lb| {
        Bench::new(move |routes| {
            routes.traffic_policy.lb = lb;
            let mut only = route("only", vec![weighted("v2", 1)]);
            only.matches = vec![HttpMatch { uri: Some(is("/only")), ..HttpMatch::default() }];
            let mut all = weighted("", 1);
            all.subset = None;
            routes.http = vec![only, route("all", vec![all])];
            routes.subsets = vec![subset("v1"), subset("v2")];
        })
    };
    balanced(LbAlgorithm::RoundRobin).run(async |bench| {
        let mut last = bench.get("/").await.2[..2].to_owned();
        for _ in 0..20 {
            let next = bench.get("/").await.2[..2].to_owned();
            assert_ne!(next, last);
            last = next;
        }
    });
    for lb in [LbAlgorithm::Random, LbAlgorithm::LeastRequest] {
        balanced(lb).run(async |bench| {
            let mut v1 = 0;
            for _ in 0..100 {
                v1 += u32::from(bench.get("/").await.2.starts_with("v1"));
                assert!(bench.get("/only").await.2.starts_with("v2"));
            }
            assert!((25..=75).contains(&v1), "{lb:?}: five deviations around half: {v1}");
        });
    }
}

#[test]
fn every_kind_of_l7_policy_field_denies_what_it_names_and_nothing_else() {
    let exact = |text: &str| vec![StringMatch::Exact(text.into())];
    let operation = |operation: L7Operation| L7Rule { to: vec![operation], ..L7Rule::default() };
    let source = |source: L7Source| L7Rule { from: vec![source], ..L7Rule::default() };
    let of = |methods, paths, hosts| L7Operation { methods, paths, hosts, ..L7Operation::default() };
    let principal = |name: &str| L7Source {
        principals: exact(&format!("cluster.local/ns/default/sa/{name}")),
        ..L7Source::default()
    };
    let namespace = |name: &str| L7Source { namespaces: exact(name), ..L7Source::default() };
    for (what, rule, denied) in [
        ("method", operation(of(exact("GET"), vec![], vec![])), true),
        ("other method", operation(of(exact("PUT"), vec![], vec![])), false),
        ("path", operation(of(vec![], exact("/page"), vec![])), true),
        ("other path", operation(of(vec![], exact("/pages"), vec![])), false),
        ("host", operation(of(vec![], vec![], exact("WEB"))), true),
        ("other host", operation(of(vec![], vec![], exact("web2"))), false),
        ("principal", source(principal("client")), true),
        ("other principal", source(principal("client2")), false),
        ("namespace", source(namespace("default")), true),
        ("other namespace", source(namespace("prod")), false),
    ] {
        Bench::new(|_| {}).run(async |bench| {
            let policy = policy_deny_header("unused");
            bench.put_policy(L7Policy { action: PolicyAction::Deny, rules: vec![rule], ..policy });
            let (status, headers, _) = bench.get("/page").await;
            let reason = headers.get("x-culvert-reason").map(|v| v.to_str().unwrap());
            let wanted = if denied { (403, Some("policy_denied")) } else { (200, None) };
            assert_eq!((status.as_u16(), reason), wanted, "{what}");
        });
    }
}

#[test]
fn request_metrics_carry_istios_labels_and_count_duration_and_sizes() {
    Bench::new(|routes| routes.http = vec![route("r", vec![weighted("v1", 1)])]).run(async |bench| {
        let request = Request::post("/echo").header("host", "web").body(Full::from("12345")).unwrap();
        assert_eq!(bench.send(request).await.2, "12345");
        bench.until_metric("istio_requests_total{").await;
        let text = bench.metrics();
        let line = text.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
        for label in [
            "reporter=\"waypoint\"",
            "source_workload=\"client\"",
            "source_principal=\"spiffe://cluster.local/ns/default/sa/client\"",
            "destination_principal=\"spiffe://cluster.local/ns/default/sa/default\"",
            "destination_service=\"web.default.svc.cluster.local\"",
            "destination_service_namespace=\"default\"",
            "request_protocol=\"http\"",
            "response_code=\"200\"",
            "response_flags=\"-\"",
            "connection_security_policy=\"mutual_tls\"",
        ] {
            assert!(line.contains(label), "{label}: {line}");
        }
        let value = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(&format!("{name}{{"))).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(value("istio_request_duration_milliseconds_count"), "1");
        assert_eq!(
            (value("istio_request_bytes_sum"), value("istio_response_bytes_sum")),
            ("5".into(), "5".into())
        );
        assert!(!text.contains("response_code=\"503\""));
    });
}
