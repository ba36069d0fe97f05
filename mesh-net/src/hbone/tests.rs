mod limits;
mod strange;

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use mesh_core::{
    hbone::Authority,
    outcome::{Reason, Refusal},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Client, Head},
    pool::{Key, Pool},
    server::{Connect, serve},
    *,
};
use crate::tls::{
    WorkloadTls,
    testing::{self, id},
};

/// An HBONE server on loopback that gives each accepted stream to `handle`, and a way to dial it.
pub(crate) struct Fixture {
    pub(crate) address: SocketAddr,
    client: WorkloadTls,
    drain: Rc<RefCell<CancellationToken>>,
    pub(crate) accepted: Rc<Cell<u32>>,
}

impl Fixture {
    pub(crate) async fn new<F, Fut>(handle: F) -> Self
    where
        F: Fn(Connect) -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let ca = testing::Authority::new();
        let server = WorkloadTls::new(&ca.issue(&id("server"))).unwrap();
        let client = WorkloadTls::new(&ca.issue(&id("client"))).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, accepted) = (Rc::<RefCell<CancellationToken>>::default(), Rc::new(Cell::new(0)));
        let (token, count) = (drain.clone(), accepted.clone());
        spawn_local(async move {
            while let Ok((tcp, peer)) = listener.accept().await {
                count.set(count.get() + 1);
                let (tls, token, handle) = (server.acceptor(), token.borrow().clone(), handle.clone());
                spawn_local(async move { serve(tcp, peer, &tls, token, handle).await });
            }
        });
        Self { address, client, drain, accepted }
    }

    pub(crate) async fn dial(&self) -> Result<Client, Refusal> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let tls = self.client.connector(&[id("server")]).unwrap();
        Client::handshake(tcp, self.address, &tls).await
    }

    /// Tells the clients of the connections of now to go elsewhere.
    fn drain(&self) {
        self.drain.replace(CancellationToken::new()).cancel();
    }

    fn key(&self, uid: &str) -> Key {
        Key {
            source: id("client"),
            from: self.address.ip(),
            peer: mesh_core::model::WorkloadUid::new(uid),
            expected: vec![id("server")],
            address: self.address,
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.drain();
    }
}

async fn echo(connect: Connect) {
    let (mut read, mut write) = tokio::io::split(connect.accept(Some("service.name=echo")).unwrap());
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

fn target() -> Authority {
    "10.0.0.1:80".parse().unwrap()
}

#[tokio::test]
async fn a_stream_carries_bytes_and_each_direction_ends_alone() {
    let work = async {
        let fixture = Fixture::new(echo).await;
        let client = fixture.dial().await.unwrap();
        let mut stream = client.open(&target(), Head::default()).await.unwrap();
        assert_eq!(stream.baggage.as_deref(), Some("service.name=echo"));
        assert_eq!(stream.peer, Some(id("server")));
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_refusal_says_its_status_and_a_dropped_stream_is_a_reset() {
    let work = async {
        let refusing = Fixture::new(|connect: Connect| async move { connect.refuse(401) }).await;
        let client = refusing.dial().await.unwrap();
        let refusal = client.open(&target(), Head::default()).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::TunnelRefused);
        assert!(refusal.detail.contains("401"), "{refusal}");
        let dropping = Fixture::new(|connect: Connect| async move {
            let mut stream = connect.accept(None).unwrap();
            let _ = stream.read_u8().await;
        })
        .await;
        let client = dropping.dial().await.unwrap();
        let mut stream = client.open(&target(), Head::default()).await.unwrap();
        stream.write_u8(1).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn the_pool_dials_once_for_many_flows_and_never_crosses_workloads() {
    let work = async {
        let fixture = Rc::new(Fixture::new(echo).await);
        let pool = Rc::new(Pool::default());
        let flows: Vec<_> = (0..50)
            .map(|_| {
                let (fixture, pool) = (fixture.clone(), pool.clone());
                spawn_local(async move {
                    pool.open(fixture.key("a"), &target(), Head::default(), || fixture.dial()).await
                })
            })
            .collect();
        let mut streams = Vec::new();
        for flow in flows {
            streams.push(flow.await.unwrap().unwrap());
        }
        assert_eq!((fixture.accepted.get(), pool.connections()), (1, 1));
        pool.open(fixture.key("b"), &target(), Head::default(), || fixture.dial()).await.unwrap();
        assert_eq!((fixture.accepted.get(), pool.connections()), (2, 2));
        let changed = Key { expected: vec![id("server"), id("other")], ..fixture.key("a") };
        pool.open(changed, &target(), Head::default(), || fixture.dial()).await.unwrap();
        assert_eq!(
            (fixture.accepted.get(), pool.connections()),
            (3, 3),
            "another expectation, another connection"
        );
        drop(streams);
        pool.close();
        assert_eq!(pool.connections(), 0);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_writer_waits_for_a_reader_that_does_not_read() {
    let work = async {
        let fixture = Fixture::new(|connect: Connect| async move {
            let _held = connect.accept(None).unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let client = fixture.dial().await.unwrap();
        let mut stream = client.open(&target(), Head::default()).await.unwrap();
        let sent = Cell::new(0_usize);
        let writing = async {
            loop {
                sent.set(sent.get() + stream.write(&[0; 65536]).await.unwrap());
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), writing).await;
        assert!(sent.get() <= STREAM_WINDOW as usize + SEND_BUFFER, "{}", sent.get());
    };
    LocalSet::new().run_until(work).await;
}
