use std::sync::Mutex;

use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_util::sync::DropGuard;

use super::*;

struct World {
    address: std::net::SocketAddr,
    socket: std::path::PathBuf,
    ready: Ready,
    draining: CancellationToken,
    _dir: tempfile::TempDir,
    _stop: DropGuard,
}

async fn world() -> World {
    let registry = Registry::new();
    let counter = IntCounter::new("some_total", "Some").unwrap();
    counter.inc_by(3);
    registry.register(Box::new(counter)).unwrap();
    let (ready, draining, cancel) = (Ready::new(), CancellationToken::new(), CancellationToken::new());
    let level = Mutex::new("info".to_owned());
    let admin = Admin::new(registry, ready.clone(), draining.clone())
        .with_figures(|text| text.push_str("read_when_asked 1\n"))
        .with_logging(move |new| match new {
            Some("nonsense") => Err("no such level".into()),
            Some(new) => Ok(std::mem::replace(&mut *level.lock().unwrap(), new.into())),
            None => Ok(level.lock().unwrap().clone()),
        })
        .with_handler(|path, query| async move {
            (path == "/debug/echo").then(|| Answer::json(&query.unwrap_or_default()))
        });
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/admin.sock");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_tcp(admin.clone(), listener, cancel.clone()));
    tokio::spawn(serve_unix(admin, bind_unix(&socket).unwrap(), cancel.clone()));
    World { address, socket, ready, draining, _dir: dir, _stop: cancel.drop_guard() }
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(mut socket: S, line: &str) -> (u16, String) {
    let request = format!("{line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

async fn over_tcp(world: &World, line: &str) -> (u16, String) {
    ask(TcpStream::connect(world.address).await.unwrap(), line).await
}

async fn over_unix(world: &World, line: &str) -> (u16, String) {
    ask(UnixStream::connect(&world.socket).await.unwrap(), line).await
}

#[tokio::test]
async fn the_admin_endpoint_answers_alike_over_tcp_and_over_its_socket() {
    let world = world().await;
    let (status, metrics) = over_tcp(&world, "GET /metrics").await;
    assert!(status == 200 && metrics.contains("some_total 3\n") && metrics.ends_with("read_when_asked 1\n"));
    assert_eq!(over_unix(&world, "GET /metrics").await.1, metrics);
    assert_eq!(over_unix(&world, "GET /debug/echo?a=b").await, (200, "\"a=b\"".into()));
    assert_eq!(over_tcp(&world, "GET /nowhere").await.0, 404);
    assert_eq!(over_tcp(&world, "POST /metrics").await.0, 405);
}

#[tokio::test]
async fn readiness_over_http_names_what_is_awaited_and_ends_with_the_drain() {
    let world = world().await;
    let pending = world.ready.awaits("certificate");
    assert_eq!(over_tcp(&world, "GET /readyz").await, (503, "awaiting certificate\n".into()));
    assert_eq!(over_tcp(&world, "GET /healthz").await.0, 200);
    drop(pending);
    assert_eq!(over_tcp(&world, "GET /healthz/ready").await, (200, "ready\n".into()));
    world.draining.cancel();
    assert_eq!(over_tcp(&world, "GET /readyz").await, (503, "draining\n".into()));
}

#[tokio::test]
async fn the_log_level_is_set_over_the_socket_only() {
    let world = world().await;
    assert_eq!(over_tcp(&world, "GET /logging").await, (200, "info\n".into()));
    assert_eq!(over_tcp(&world, "POST /logging?level=debug").await.0, 403);
    assert_eq!(over_unix(&world, "POST /logging?level=nonsense").await, (400, "no such level\n".into()));
    assert_eq!(over_unix(&world, "POST /logging?level=debug").await.0, 200);
    assert_eq!(over_tcp(&world, "GET /logging").await, (200, "debug\n".into()));
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let world = world().await;
    let line = format!("GET /{}", "a".repeat(32 << 10));
    let mut socket = TcpStream::connect(world.address).await.unwrap();
    // The server may close before it has read everything: neither is an error here.
    let _ = socket.write_all(format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    let status = String::from_utf8_lossy(&answer);
    assert!(status.starts_with("HTTP/1.1 414") || status.starts_with("HTTP/1.1 431"), "{status}");
}

#[tokio::test]
async fn a_new_process_takes_the_socket_over() {
    let world = world().await;
    let listener = bind_unix(&world.socket).unwrap();
    let connecting = UnixStream::connect(&world.socket);
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    assert!(accepted.is_ok() && connected.is_ok());
}
