use std::rc::Rc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::{LocalSet, spawn_local},
};

use super::*;
use crate::hbone::{STREAM_WINDOW, client::Head, server::Connect, tests::Fixture};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Makes closing send a RST.
fn abort(tcp: &TcpStream) {
    SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
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
async fn a_server_that_half_closes_first_still_gets_the_rest() {
    let work = async {
        let (mut client, mut server, counters) = path().await;
        server.write_all(b"hello").await.unwrap();
        server.shutdown().await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        client.write_all(b"the rest").await.unwrap();
        client.shutdown().await.unwrap();
        text.clear();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), counters.sent.get()), ("the rest", 8));
    };
    LocalSet::new().run_until(work).await;
}

/// Of a prime length, so that bytes that are lost, doubled or moved do not fit.
fn pattern() -> Vec<u8> {
    (0..65_521_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn send(app: &mut (impl AsyncWriteExt + Unpin), total: usize) {
    let (pattern, mut sent) = (pattern(), 0);
    while sent < total {
        let part = &pattern[sent % pattern.len()..];
        sent += app.write(&part[..part.len().min(total - sent)]).await.unwrap();
    }
}

async fn check(app: &mut (impl AsyncReadExt + Unpin), total: usize) {
    let (pattern, mut seen, mut buffer) = (pattern(), 0, vec![0; 65536]);
    while seen < total {
        let count = app.read(&mut buffer).await.unwrap();
        assert!(count > 0, "ended at {seen} of {total}");
        let mut part = &buffer[..count];
        while !part.is_empty() {
            let right = &pattern[seen % pattern.len()..];
            let (right, length) = (&right[..right.len().min(part.len())], right.len().min(part.len()));
            assert!(&part[..length] == right, "differs near {seen}");
            (seen, part) = (seen + length, &part[length..]);
        }
    }
    assert_eq!(app.read(&mut buffer).await.unwrap(), 0, "more than was sent");
}

#[tokio::test]
async fn bulk_flows_both_ways_at_once_arrive_whole() {
    const TOTAL: usize = 1 << 30;
    let work = async {
        let (client, server, counters) = path().await;
        let flow = |app: TcpStream| async move {
            let (mut read, mut write) = app.into_split();
            let sending = async {
                send(&mut write, TOTAL).await;
                write.shutdown().await.unwrap();
            };
            tokio::join!(sending, check(&mut read, TOTAL));
        };
        tokio::join!(flow(client), flow(server));
        assert_eq!((counters.sent.get(), counters.received.get()), (TOTAL as u64, TOTAL as u64));
    };
    LocalSet::new().run_until(work).await;
}

/// Most that two sockets of loopback hold between a writer and a relay, or a relay and a reader.
const KERNEL: usize = 12 << 20;

#[tokio::test]
async fn a_reader_that_stops_makes_us_hold_a_bounded_amount_and_gets_it_later() {
    let work = async {
        for up in [true, false] {
            let (client, server, _) = path().await;
            let (mut writer, mut reader) = if up { (client, server) } else { (server, client) };
            let (pattern, sent) = (pattern(), Cell::new(0_usize));
            let flood = async {
                loop {
                    let part = &pattern[sent.get() % pattern.len()..];
                    sent.set(sent.get() + writer.write(part).await.unwrap());
                }
            };
            // Until nothing moves for a while.
            tokio::pin!(flood);
            let mut before = usize::MAX;
            while sent.get() != before {
                before = sent.get();
                let _ = tokio::time::timeout(Duration::from_millis(300), &mut flood).await;
            }
            let most = (STREAM_WINDOW as usize) + (1 << 20) + 2 * KERNEL;
            assert!(sent.get() > STREAM_WINDOW as usize / 2 && sent.get() <= most, "{}", sent.get());
            let total = sent.get();
            writer.shutdown().await.unwrap();
            check(&mut reader, total).await;
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_client_that_resets_while_its_tunnel_is_full_ends_the_flow() {
    let work = async {
        let (client, mut server, counters) = path().await;
        let block = vec![1; 65536];
        let mut before = u64::MAX;
        while counters.sent.get() != before {
            before = counters.sent.get();
            let flood = async {
                loop {
                    client.writable().await.unwrap();
                    let _ = client.try_write(&block);
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(300), flood).await;
        }
        abort(&client);
        drop(client);
        // What was delivered before the reset may still be read, nothing needs to be read for it to come.
        let mut rest = Vec::new();
        let error = server.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    };
    LocalSet::new().run_until(work).await;
}

/// A read that fails with a reset; anything that looks like an end of data is a failure of the test.
async fn was_reset(app: &mut TcpStream) {
    let read = app.read(&mut [0]).await;
    assert_eq!(read.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_plain_flow_that_is_told_to_end_is_reset_on_both_sides() {
    let ((mut client, near), (mut server, far)) = (pair().await, pair().await);
    let counters = Counters::default();
    let flow = plain(near, far, &counters);
    let said = async {
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
    };
    tokio::select! {
        _ = flow => panic!("neither side has ended"),
        () = said => {}
    }
    was_reset(&mut client).await;
    was_reset(&mut server).await;
}

#[tokio::test]
async fn a_tunnel_that_is_told_to_end_is_reset_at_both_applications() {
    let work = async {
        let (server_app, server_side) = pair().await;
        let side = Rc::new(Cell::new(Some(server_side)));
        let end = Rc::new(tokio::sync::Notify::new());
        let told = end.clone();
        let fixture = Fixture::new(move |connect: Connect| {
            let (side, told) = (side.clone(), told.clone());
            async move {
                let (stream, tcp) = (connect.accept(None).unwrap(), side.take().unwrap());
                let counters = Counters::default();
                let flow = tunnel(tcp, stream, &counters, Reason::UpstreamReset, Reason::ClientReset);
                tokio::select! {
                    _ = flow => {}
                    () = told.notified() => {}
                }
            }
        })
        .await;
        let (mut client_app, client_side) = pair().await;
        let mut server_app = server_app;
        let client = fixture.dial().await.unwrap();
        let stream = client.open(&"10.0.0.1:80".parse().unwrap(), Head::default()).await.unwrap();
        let flow = spawn_local(async move {
            let counters = Counters::default();
            tunnel(client_side, stream, &counters, Reason::ClientReset, Reason::UpstreamReset).await
        });
        client_app.write_all(b"x").await.unwrap();
        server_app.read_exact(&mut [0]).await.unwrap();
        end.notify_one();
        was_reset(&mut server_app).await;
        was_reset(&mut client_app).await;
        assert_eq!(flow.await.unwrap().unwrap_err().reason, Reason::UpstreamReset);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_plain_flow_that_is_always_ready_arrives_whole_and_gives_way_to_others() {
    use std::io::{Read, Write};
    const TOTAL: usize = 256 << 20;
    let work = async {
        let ((client, near), (far, server)) = (pair().await, pair().await);
        let blocking = |socket: TcpStream| {
            let socket = socket.into_std().unwrap();
            socket.set_nonblocking(false).unwrap();
            socket
        };
        let (mut client, mut server) = (blocking(client), blocking(server));
        // On threads of their own: the relay never waits for them to have their turn.
        let writer = std::thread::spawn(move || {
            let block = vec![7; 1 << 20];
            (0..TOTAL / block.len()).for_each(|_| client.write_all(&block).unwrap());
            client.shutdown(Shutdown::Write).unwrap();
            client
        });
        let reader = std::thread::spawn(move || {
            let (mut block, mut total) = (vec![0; 1 << 20], 0);
            while let count @ 1.. = server.read(&mut block).unwrap() {
                total += count;
            }
            total
        });
        let turns = Rc::new(Cell::new(0_u64));
        let counted = turns.clone();
        let other = spawn_local(async move {
            loop {
                counted.set(counted.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        let counters = Counters::default();
        plain(near, far, &counters).await.unwrap();
        other.abort();
        assert_eq!((reader.join().unwrap(), counters.sent.get()), (TOTAL, TOTAL as u64));
        assert!(turns.get() > 10, "others had {} turns", turns.get());
        drop(writer.join().unwrap());
    };
    LocalSet::new().run_until(work).await;
}
