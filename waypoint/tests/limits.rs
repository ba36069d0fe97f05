//! Connection limits of DestinationRule, each with its negative twin.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{App, Bench, route, weighted};
use http::StatusCode;
use mesh_core::model::{
    AppProtocol,
    l7::{RetryCondition, RetryPolicy, TcpRoute, TrafficPolicy},
};

/// Everything goes to `v1`, whose subset has this policy.
fn one_endpoint(policy: TrafficPolicy) -> Bench {
    Bench::new(|routes| {
        routes.http = vec![route("r", vec![weighted("v1", 1)])];
        routes.subsets[0].traffic_policy = policy;
    })
}

#[test]
fn max_connections_makes_requests_wait_for_a_connection_that_is_there() {
    let policy = TrafficPolicy { max_connections: Some(1), ..TrafficPolicy::default() };
    one_endpoint(policy).run(async |bench| {
        let all: Vec<_> = (0..8).map(|_| bench.spawn_get("/")).collect();
        for request in all {
            request.await.unwrap();
        }
        assert_eq!((bench.upstream_requests(), bench.upstream_connections()), (8, 1));
    });
    one_endpoint(TrafficPolicy::default()).run(async |bench| {
        let all: Vec<_> = (0..8).map(|_| bench.spawn_get("/")).collect();
        for request in all {
            request.await.unwrap();
        }
        assert!(bench.upstream_connections() > 1, "without the limit they do not wait");
    });
}

#[test]
fn pending_requests_over_the_limit_get_503_uo_and_the_others_are_served() {
    let limited = |pending| TrafficPolicy {
        max_connections: Some(1),
        max_pending_requests: pending,
        ..TrafficPolicy::default()
    };
    one_endpoint(limited(Some(1))).run(async |bench| {
        let slow = bench.spawn_get("/never");
        bench.until_upstream_requests(1).await;
        let waiting = bench.spawn_get("/");
        // Whichever of the two comes second overflows.
        let (status, headers, body) = bench.get("/").await;
        let reason = headers["x-culvert-reason"].to_str().unwrap();
        assert_eq!(
            (status.as_u16(), reason, body.as_str()),
            (503, "limit_reached", "upstream limit reached")
        );
        assert!(bench.metrics().contains("response_flags=\"UO\""));
        assert!(bench.metrics().contains("culvert_waypoint_refusals_total{reason=\"limit_reached\"} 1"));
        slow.abort();
        waiting.await.unwrap();
        assert_eq!(bench.upstream_requests(), 2, "the one that waited was served");
    });
    one_endpoint(limited(None)).run(async |bench| {
        let slow = bench.spawn_get("/never");
        bench.until_upstream_requests(1).await;
        let waiting: Vec<_> = (0..3).map(|_| bench.spawn_get("/")).collect();
        slow.abort();
        for request in waiting {
            request.await.unwrap();
        }
        assert_eq!(bench.upstream_requests(), 4);
        assert!(!bench.metrics().contains("response_flags=\"UO\""));
    });
}

#[test]
fn a_connection_serves_its_share_of_requests_and_is_replaced() {
    let share = |most| TrafficPolicy { max_requests_per_connection: most, ..TrafficPolicy::default() };
    for (most, connections) in [(Some(1), 6), (Some(2), 3), (None, 1)] {
        one_endpoint(share(most)).run(async |bench| {
            for _ in 0..6 {
                assert_eq!(bench.get("/").await.0, StatusCode::OK);
            }
            assert_eq!(bench.upstream_connections(), connections, "{most:?}");
        });
    }
}

#[test]
fn connecting_longer_than_connect_timeout_is_503_uf_and_a_quick_one_is_not() {
    let timed = |timeout| TrafficPolicy { connect_timeout: Some(timeout), ..TrafficPolicy::default() };
    one_endpoint(timed(Duration::from_millis(20))).run(async |bench| {
        bench.stall_dials(true);
        let (status, headers, _) = bench.get("/").await;
        assert_eq!(
            (status.as_u16(), headers["x-culvert-reason"].to_str().unwrap()),
            (503, "connect_timeout")
        );
        assert!(bench.metrics().contains("response_flags=\"UF\""));
        bench.stall_dials(false);
        assert_eq!(bench.get("/").await.0, StatusCode::OK);
    });
}

#[test]
fn http2_streams_share_one_connection_however_many_come_first() {
    Bench::with(AppProtocol::Grpc, |routes| routes.http = vec![route("r", vec![weighted("v1", 1)])]).run(
        async |bench| {
            let all: Vec<_> = (0..20).map(|_| bench.spawn_get("/")).collect();
            for request in all {
                request.await.unwrap();
            }
            assert_eq!((bench.upstream_requests(), bench.upstream_connections()), (20, 1));
        },
    );
}

#[test]
fn tcp_connections_over_the_limit_are_closed_and_counted() {
    Bench::with_app(AppProtocol::Tcp, App::Tcp, |routes| routes.traffic_policy.max_connections = Some(1))
        .run(async |bench| {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut first = bench.raw().await;
            first.write_all(b"one").await.unwrap();
            bench.until_metric("istio_tcp_received_bytes_total").await;
            while bench.upstream_connections() < 1 {
                tokio::task::yield_now().await;
            }
            let mut second = bench.raw().await;
            let mut text = String::new();
            let _ = second.read_to_string(&mut text).await;
            assert_eq!(text, "", "closed without a byte");
            bench.until_metric("culvert_waypoint_refusals_total{reason=\"limit_reached\"} 1").await;
            first.shutdown().await.unwrap();
            first.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "one, all of them");
            let mut third = bench.raw().await;
            third.shutdown().await.unwrap();
            third.read_to_string(&mut text).await.unwrap();
            assert!(text.ends_with(", all of them"), "the place is free again");
        });
}

#[test]
fn max_retries_bounds_the_retries_under_way_and_not_the_first_tries() {
    for (limit, status, tries) in [(Some(1), 503, 3), (Some(2), 200, 4), (None, 200, 4)] {
        Bench::new(|routes| {
            let mut r = route("r", vec![weighted("v1", 1)]);
            let (retry_on, backoff) = (vec![RetryCondition::Status5xx], Duration::from_millis(1));
            r.retries = RetryPolicy { attempts: 2, per_try_timeout: None, retry_on, backoff };
            routes.http = vec![r];
            routes.subsets[0].traffic_policy.max_retries = limit;
        })
        .run(async |bench| {
            bench.fail_next(1);
            bench.hang_next(1);
            let slow = bench.spawn_get("/");
            bench.until_upstream_requests(2).await;
            bench.fail_next(1);
            assert_eq!(bench.get("/").await.0.as_u16(), status, "{limit:?}");
            assert_eq!(bench.upstream_requests(), tries, "{limit:?}");
            assert_eq!(bench.metrics().contains("response_flags=\"UO\""), status == 503);
            slow.abort();
            let _ = slow.await;
            bench.fail_next(1);
            while bench.get("/").await.0 != StatusCode::OK {
                // The client that is gone may not have been noticed yet.
                bench.fail_next(1);
            }
        });
    }
}

#[test]
fn a_tcp_route_sends_its_port_to_its_destination_and_leaves_other_ports_alone() {
    for (port, ends) in [(Some(80), ["v2"].as_slice()), (None, &["v2"]), (Some(81), &["v1", "v2"])] {
        Bench::with_app(AppProtocol::Tcp, App::Greeter, |routes| {
            let destinations = vec![weighted("v1", 0), weighted("v2", 1)];
            routes.tcp = vec![TcpRoute { port, destinations }];
        })
        .run(async |bench| {
            for version in ["v1", "v2"] {
                bench.break_dials(version, true);
                let mut served = 0;
                for _ in 0..30 {
                    use tokio::io::AsyncReadExt;
                    let mut greeting = String::new();
                    let _ = bench.raw().await.take(5).read_to_string(&mut greeting).await;
                    served += usize::from(greeting == "220 x");
                }
                bench.break_dials(version, false);
                let others = ends.iter().filter(|end| **end != version).count();
                let all_served = !ends.contains(&version);
                assert_eq!(
                    (served > 0, served == 30),
                    (others > 0, all_served),
                    "{port:?}: {version} broken"
                );
            }
        });
    }
}
