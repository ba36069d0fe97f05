//! WebSocket: the only protocol that is switched to, and what holds as long as it is open.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Bench, policy_deny_header};
use mesh_core::model::{
    StringMatch,
    l7::{L7Operation, L7Policy, L7Rule},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Asks for a switch; the connection and the head of the answer.
async fn switch(bench: &Bench, path: &str, upgrade: &str) -> (TcpStream, String) {
    let mut io = bench.raw().await;
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: Upgrade, HTTP2-Settings\r\n{upgrade}\r\n\r\n"
    );
    io.write_all(head.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    (io, String::from_utf8(head).unwrap())
}

async fn open(bench: &Bench) -> TcpStream {
    let (mut io, head) = switch(bench, "/ws", "upgrade: WebSocket").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    echo(&mut io).await;
    io
}

async fn echo(io: &mut TcpStream) {
    io.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    io.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

fn deny(path: &str) -> L7Policy {
    let paths = vec![StringMatch::Exact(path.into())];
    let to = vec![L7Operation { paths, ..L7Operation::default() }];
    L7Policy { rules: vec![L7Rule { to, ..L7Rule::default() }], ..policy_deny_header("unused") }
}

#[test]
fn requests_for_other_protocols_than_websocket_stay_http() {
    for upgrade in ["upgrade: h2c", "upgrade: h2c, websocket", "upgrade: websocket\r\nupgrade: h2c", "x: y"] {
        Bench::new(|_| {}).run(async |bench| {
            let (_, head) = switch(bench, "/plain", upgrade).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{upgrade}: {head}");
            // This application switches whatever it is asked; nobody has asked it.
            let (_, head) = switch(bench, "/ws", upgrade).await;
            assert!(head.starts_with("HTTP/1.1 503"), "{upgrade}: {head}");
            assert!(head.contains("x-culvert-reason: upstream_reset"), "{head}");
        });
    }
}

#[test]
fn an_open_websocket_is_closed_when_policy_forbids_its_request_and_survives_other_changes() {
    Bench::new(|_| {}).run(async |bench| {
        let mut io = open(bench).await;
        bench.put_policy(deny("/other"));
        let closed = tokio::time::timeout(Duration::from_millis(200), io.read_u8()).await;
        assert!(closed.is_err(), "a policy about another path closes nothing");
        echo(&mut io).await;
        bench.put_policy(deny("/ws"));
        assert!(io.read_u8().await.is_err());
        bench.until_metric("culvert_waypoint_refusals_total{reason=\"policy_changed\"} 1").await;
    });
}

#[test]
fn a_websocket_is_recorded_once_at_its_end_with_its_bytes() {
    Bench::new(|_| {}).run(async |bench| {
        let mut io = open(bench).await;
        echo(&mut io).await;
        assert!(!bench.metrics().contains("istio_requests_total{"), "it goes on");
        drop(io);
        bench.until_metric("istio_requests_total{").await;
        let text = bench.metrics();
        let line = |name: &str| text.lines().find(|l| l.starts_with(&format!("{name}{{"))).unwrap();
        assert!(line("istio_requests_total").contains("response_code=\"101\""));
        for name in ["istio_request_bytes_sum", "istio_response_bytes_sum"] {
            assert!(line(name).ends_with(" 10"), "{}", line(name));
        }
        assert!(text.contains("reason=\"client_reset\"} 0"), "an orderly end");
    });
}

#[test]
fn a_drain_lets_a_websocket_go_on_and_its_deadline_closes_it() {
    Bench::new(|_| {}).run(async |bench| {
        let mut io = open(bench).await;
        bench.worker().drain.cancel();
        echo(&mut io).await;
        bench.worker().expired.cancel();
        assert!(io.read_u8().await.is_err());
        bench.until_metric("culvert_waypoint_refusals_total{reason=\"drain_deadline\"} 1").await;
    });
}
