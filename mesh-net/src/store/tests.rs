use std::fs;

use mesh_core::model::{Workload, WorkloadUid};
use tokio_util::sync::CancellationToken;

use super::*;

fn change(name: &str) -> Change {
    Change::Workload(Arc::new(Workload::new(WorkloadUid::pod("c", "default", name), "default", name)))
}

fn versions(name: &str) -> Versions {
    Versions::from([("t".into(), BTreeMap::from([(name.into(), "1".into())]))])
}

#[tokio::test]
async fn readers_keep_their_world_and_are_told_of_the_next() {
    let store = SnapshotStore::default();
    let mut watcher = store.subscribe();
    let before = store.current();
    store.apply(vec![change("a"), change("b")]);
    watcher.changed().await.unwrap();
    assert_eq!((before.workload_count(), store.current().workload_count()), (0, 2));
}

#[test]
fn a_snapshot_survives_on_disk_and_a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot");
    assert!(load(&path).unwrap().is_none());
    let snapshot = Snapshot::of([change("a"), Change::Synced]);
    save(&path, &snapshot, &versions("a")).unwrap();
    let (restored, restored_versions) = load(&path).unwrap().unwrap();
    assert_eq!((restored.workload_count(), restored.is_complete()), (1, true));
    assert_eq!(restored_versions, versions("a"));

    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(load(&path), Err(CacheError::Damaged { .. })));
    bytes[middle] ^= 1;
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(load(&path), Err(CacheError::Damaged { .. })));
    fs::write(&path, "").unwrap();
    assert!(matches!(load(&path), Err(CacheError::Damaged { .. })));
    assert!(Cache::new(&path).load().is_none(), "a damaged file is no reason not to start");
}

#[test]
fn an_incomplete_snapshot_is_loaded_as_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot");
    let mut snapshot = Snapshot::new();
    snapshot.apply([change("a")]);
    save(&path, &snapshot, &versions("a")).unwrap();
    assert!(!load(&path).unwrap().unwrap().0.is_complete());
}

#[tokio::test]
async fn a_cache_follows_its_store_and_keeps_only_complete_worlds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot");
    let (store, cancel) = (Arc::new(SnapshotStore::default()), CancellationToken::new());
    let keeping = tokio::spawn(Cache::new(&path).keep(store.clone(), cancel.clone()));
    tokio::task::yield_now().await;
    store.update(|_| (vec![change("a")], Arc::new(versions("a"))));
    // What comes within the pause is written at the end.
    store.update(|_| (vec![change("b"), Change::Synced], Arc::new(versions("b"))));
    while load(&path).unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    store.update(|_| (vec![change("c")], Arc::new(versions("c"))));
    cancel.cancel();
    keeping.await.unwrap();
    let (snapshot, held) = load(&path).unwrap().unwrap();
    assert_eq!((snapshot.workload_count(), snapshot.is_complete()), (3, true));
    assert_eq!(held, versions("c"));
}

#[test]
fn a_world_from_disk_says_so_until_it_is_confirmed() {
    let store = SnapshotStore::from_disk(Snapshot::of([change("a")]));
    store.apply(vec![change("b")]);
    assert!(store.is_from_disk(), "a part of the news does not make it current");
    store.confirm();
    assert!(!store.is_from_disk());
}
