//! Bounds: connections, idle time, silence, many flows at once.

use std::future::pending;

use tokio::{io::duplex, time::sleep};

use super::*;

/// Both sides of a connection in memory, so that the clock can be paused.
async fn in_memory(
    server: impl AsyncFnOnce(tokio::io::DuplexStream, tokio_rustls::TlsAcceptor) + 'static,
) -> Result<Client, Refusal> {
    let ca = testing::Authority::new();
    let acceptor = WorkloadTls::new(&ca.issue(&id("server"))).unwrap().acceptor();
    let client = WorkloadTls::new(&ca.issue(&id("client"))).unwrap();
    let (near, far) = duplex(64 << 10);
    spawn_local(async move { server(far, acceptor).await });
    Client::handshake(near, somewhere(), &client.connector(&[id("server")]).unwrap()).await
}

fn somewhere() -> SocketAddr {
    ([10, 0, 0, 1], 15008).into()
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_ends_after_its_time() {
    let work = async {
        let ended = Rc::new(Cell::new(false));
        let flag = ended.clone();
        let serving = async move |io, tls: tokio_rustls::TlsAcceptor| {
            let served = serve(io, somewhere(), &tls, CancellationToken::new(), echo).await;
            assert!(served.is_ok(), "told, not cut: {served:?}");
            flag.set(true);
        };
        let client = in_memory(serving).await.unwrap();
        let stream = client.open(&target(), Head::default()).await.unwrap();
        sleep(client::IDLE_LIMIT * 2).await;
        assert!(!client.is_closed(), "it has a stream");
        drop(stream);
        sleep(client::IDLE_LIMIT - Duration::from_secs(1)).await;
        assert!(!client.is_closed() && !ended.get());
        sleep(Duration::from_secs(21)).await;
        assert!(client.is_closed() && ended.get());
        let refusal = client.open(&target(), Head::default()).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::TunnelBroken);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_given_up_with_its_streams() {
    let work = async {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = async move |io, tls: tokio_rustls::TlsAcceptor| {
            let served = serve(io, somewhere(), &tls, CancellationToken::new(), echo);
            tokio::pin!(served);
            tokio::select! {
                _ = &mut served => {}
                _ = stopped => pending().await,
            }
        };
        let client = in_memory(serving).await.unwrap();
        let mut stream = client.open(&target(), Head::default()).await.unwrap();
        stop.send(()).unwrap();
        let begun = tokio::time::Instant::now();
        assert!(stream.read_u8().await.is_err());
        assert!(client.is_closed() && begun.elapsed() <= Duration::from_secs(31));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_is_given_up_on_both_sides() {
    let work = async {
        let refusal = in_memory(async |_io, _| pending().await).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::TlsFailed);
        let (_near, far) = duplex(1024);
        let tls = WorkloadTls::new(&testing::Authority::new().issue(&id("server"))).unwrap().acceptor();
        let served = serve(far, somewhere(), &tls, CancellationToken::new(), echo).await;
        assert_eq!(served.unwrap_err().reason(), Reason::TlsFailed);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn who_waited_for_a_dial_that_failed_gets_its_refusal() {
    let work = async {
        let fixture = Fixture::new(echo).await;
        let (pool, dials) = (Pool::default(), Cell::new(0));
        let dial = || async {
            dials.set(dials.get() + 1);
            tokio::task::yield_now().await;
            Err(Refusal::new(Reason::ConnectFailed, "nobody"))
        };
        let target = target();
        let many = (0..20).map(|_| pool.open(fixture.key("a"), &target, Head::default(), dial));
        let results = futures_util::future::join_all(many).await;
        assert!(results.iter().all(|r| r.as_ref().is_err_and(|e| e.reason == Reason::ConnectFailed)));
        assert_eq!(dials.get(), 1);
        pool.open(fixture.key("a"), &target, Head::default(), dial).await.unwrap_err();
        assert_eq!(dials.get(), 2, "who comes later tries again");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_full_pool_closes_what_is_idle_and_refuses_when_nothing_is() {
    let work = async {
        let fixture = Fixture::new(echo).await;
        let pool = Pool::new(pool::Limits { per_key: 1, total: 2 });
        let target = target();
        let open = |uid| pool.open(fixture.key(uid), &target, Head::default(), || fixture.dial());
        let (a, b) = (open("a").await.unwrap(), open("b").await.unwrap());
        assert_eq!(open("c").await.unwrap_err().reason, Reason::LimitReached);
        let second = open("b").await.unwrap();
        assert_eq!(fixture.accepted.get(), 2, "one that exists is shared");
        drop(a);
        open("c").await.unwrap();
        assert_eq!((fixture.accepted.get(), pool.connections()), (3, 2));
        drop((b, second));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_destination_has_at_most_its_connections_and_flows_wait_for_room_in_them() {
    let work = async {
        let fixture = Fixture::new(echo).await;
        let pool = Pool::new(pool::Limits { per_key: 2, total: 10 });
        let target = target();
        let open = |uid| pool.open(fixture.key(uid), &target, Head::default(), || fixture.dial());
        let mut held = Vec::new();
        for _ in 0..2 * client::MAX_STREAMS {
            held.push(open("a").await.unwrap());
        }
        assert_eq!(fixture.accepted.get(), 2);
        let beyond = open("a");
        tokio::pin!(beyond);
        assert!(futures_util::poll!(&mut beyond).is_pending(), "both connections are full");
        held.push(open("b").await.unwrap());
        assert_eq!((fixture.accepted.get(), pool.connections()), (3, 3), "another destination has its own");
        drop(held.swap_remove(0));
        beyond.await.unwrap();
        assert_eq!(fixture.accepted.get(), 3);
    };
    LocalSet::new().run_until(Box::pin(work)).await;
}

#[tokio::test]
async fn two_thousand_flows_share_twenty_connections() {
    const FLOWS: usize = 2000;
    let work = async {
        let (fixture, pool) = (Rc::new(Fixture::new(echo).await), Rc::new(Pool::default()));
        let all_open = Rc::new(tokio::sync::Barrier::new(FLOWS));
        let flows: Vec<_> = (0..FLOWS)
            .map(|n| {
                let (fixture, pool, all_open) = (fixture.clone(), pool.clone(), all_open.clone());
                spawn_local(async move {
                    let target = target();
                    let open = pool.open(fixture.key("a"), &target, Head::default(), || fixture.dial());
                    let mut stream = open.await.unwrap();
                    all_open.wait().await;
                    stream.write_all(&n.to_be_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await.unwrap();
                    assert_eq!(answer, n.to_be_bytes());
                })
            })
            .collect();
        for flow in flows {
            flow.await.unwrap();
        }
        assert_eq!((fixture.accepted.get(), pool.connections()), (20, 20));
    };
    LocalSet::new().run_until(work).await;
}
