use std::rc::Rc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::{LocalSet, spawn_local},
};

use super::*;
use crate::hbone::{client::Head, server::Connect, tests::Fixture};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// client app ⇄ tunnel ⇄ server app: the two applications' sockets.
async fn path() -> (TcpStream, TcpStream, Rc<Counters>) {
    let (server_app, server_side) = pair().await;
    let side = Rc::new(Cell::new(Some(server_side)));
    let fixture = Fixture::new(move |connect: Connect| {
        let side = side.clone();
        async move {
            let counters = Counters::default();
            let stream = connect.accept(None).unwrap();
            let tcp = side.take().unwrap();
            let _ = tunnel(tcp, stream, &counters, Reason::UpstreamReset, Reason::ClientReset).await;
        }
    })
    .await;
    let (client_app, client_side) = pair().await;
    let client = fixture.dial().await.unwrap();
    let stream = client.open(&"10.0.0.1:80".parse().unwrap(), Head::default()).await.unwrap();
    let counters = Rc::new(Counters::default());
    let counted = counters.clone();
    spawn_local(async move {
        let _client = client;
        let _ = tunnel(client_side, stream, &counted, Reason::ClientReset, Reason::UpstreamReset).await;
    });
    (client_app, server_app, counters)
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_answer() {
    let work = async {
        let (mut client, mut server, counters) = path().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        assert_eq!((counters.sent.get(), counters.received.get()), (8, 6));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_in_both_directions() {
    let work = async {
        for from_client in [true, false] {
            let (client, server, _) = path().await;
            let (resetting, mut other) = if from_client { (client, server) } else { (server, client) };
            abort(&resetting);
            drop(resetting);
            let error = other.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "from client: {from_client}");
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn bulk_flows_both_ways_at_once_arrive_whole() {
    const TOTAL: usize = 32 << 20;
    let work = async {
        let (client, server, counters) = path().await;
        let flow = |app: TcpStream, seed: u8| async move {
            let (mut read, mut write) = app.into_split();
            let sending = async {
                for block in 0..TOTAL / 65536 {
                    write.write_all(&vec![seed.wrapping_add(block as u8); 65536]).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            let receiving = async {
                let mut all = Vec::with_capacity(TOTAL);
                read.read_to_end(&mut all).await.unwrap();
                all
            };
            tokio::join!(sending, receiving).1
        };
        let (at_client, at_server) = tokio::join!(flow(client, 1), flow(server, 100));
        for (all, seed) in [(at_client, 100_u8), (at_server, 1)] {
            assert_eq!(all.len(), TOTAL);
            let right = |(i, b): (usize, &u8)| *b == seed.wrapping_add((i / 65536) as u8);
            assert!(all.iter().enumerate().all(right));
        }
        assert_eq!(counters.sent.get(), TOTAL as u64);
    };
    LocalSet::new().run_until(work).await;
}
