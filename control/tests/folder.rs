//! The folder under the running control plane: bursts, and being away.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Instant;

use mesh_net::wire::ADDRESS_TYPE;
use support::{POD, Running, names};

const COMPILATIONS: &str = "culvert_control_compilations_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_two_hundred_edits_causes_few_compilations() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    running.until("/metrics", |_, text| text.contains("culvert_control_folder_readable 1")).await;
    let before = running.metric(COMPILATIONS).await.unwrap();
    let start = Instant::now();
    for index in 0..200 {
        running.write(&format!("{index}.yaml"), &POD.replace("client-1", &format!("pod-{index}")));
    }
    running.until("/debug/config", |_, text| text.matches("\"uid\"").count() >= 201).await;
    let rounds = running.metric(COMPILATIONS).await.unwrap() - before;
    // One per 20 ms at the very most, however slow the machine is; normally two or three in all.
    let most = 3.0 + start.elapsed().as_secs_f64() / 0.020;
    assert!(rounds <= most.min(40.0), "{rounds} compilations in {:?}", start.elapsed());
    println!("200 edits: {rounds} compilations in {:?}", start.elapsed());
}

#[tokio::test]
async fn a_folder_that_vanishes_keeps_the_last_good_state_and_is_followed_when_it_is_back() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let mut talk = running.stream("one").await;
    talk.open(ADDRESS_TYPE, &[]).await;
    let aside = running.folder.path().join("aside");
    std::fs::rename(running.cluster(), &aside).unwrap();
    running.until("/debug/objects", |_, text| text.contains("\"code\":\"unreadable\"")).await;
    assert_eq!(running.json("/debug/config").await["workloads"].as_array().unwrap().len(), 1);
    assert_eq!(running.metric("culvert_control_folder_readable").await, Some(0.0));
    assert_eq!(running.get("/readyz").await.0, 200, "what is served is still good");
    assert!(!running.cluster().exists(), "nothing is written where the folder was");
    std::fs::rename(&aside, running.cluster()).unwrap();
    running.until("/debug/objects", |_, text| !text.contains("unreadable")).await;
    running.write("pod.yaml", &POD.replace("10.0.0.1", "10.0.0.2"));
    let pushed = talk.next().await.unwrap().unwrap();
    assert_eq!((names(&pushed).len(), pushed.removed_resources.len()), (1, 0), "the first push since");
}

#[tokio::test]
async fn nobody_is_served_before_the_folder_could_be_read_once() {
    let running = Running::start_in(tempfile::tempdir().unwrap()).await;
    let (status, why) = running.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(why.contains("first reading of the folder") && why.contains("cannot be read"), "{why}");
    let endpoint = running.endpoint("one");
    let ca = mesh_net::ca::IstioCa { endpoint, validity_seconds: 3600, impersonate: true };
    let identity = mesh_core::identity::Identity::new("cluster.local", "default", "client");
    let refused = mesh_net::ca::Signer::sign(&ca, &identity).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("the folder was not read yet"), "{refused}");
    let mut talk = running.stream("one").await;
    let opened = talk.open(ADDRESS_TYPE, &[("Kubernetes//Pod/default/client-1", "held")]);
    let filled = async {
        std::fs::create_dir(running.folder.path().join("new")).unwrap();
        std::fs::write(running.folder.path().join("new/pod.yaml"), POD).unwrap();
        std::fs::rename(running.folder.path().join("new"), running.cluster()).unwrap();
    };
    let (first, ()) = tokio::join!(opened, filled);
    assert_eq!((names(&first).len(), first.removed_resources.len()), (1, 0), "nothing was said to be gone");
    running.until("/readyz", |status, _| status == 200).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_keeps_its_objects_and_harms_no_other() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    std::fs::write(running.cluster().join("pod.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    running.write("other.yaml", &POD.replace("client-1", "other-1"));
    running.until("/debug/config", |_, text| text.contains("other-1")).await;
    running.until("/debug/objects", |_, text| text.contains("unreadable")).await;
    assert_eq!(running.json("/debug/config").await["workloads"].as_array().unwrap().len(), 2);
    let errors = "culvert_control_findings{code=\"unreadable\",kind=\"other\",severity=\"error\"}";
    assert_eq!(running.metric(errors).await, Some(1.0));
}
